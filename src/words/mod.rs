//! The words everything else is said in: keys, names and numbers, time, and the statements that are signed.
//!
//! Lowest layer: uses nothing of ours, does no input or output, reads no clock.

pub mod announcement;
pub mod certificate;
pub mod endpoint;
pub mod id;
pub mod key;
pub mod network;
pub mod request;
pub mod revocation;
pub mod signed;
pub mod time;
