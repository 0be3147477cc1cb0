//! The ssh server inside the LAN.
