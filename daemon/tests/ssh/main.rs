//! The ssh server inside the LAN, driven by the real OpenSSH client, scp, sftp and rsync over loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod harness;
mod sessions;
