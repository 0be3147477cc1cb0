//! The ssh server inside the LAN, driven by the real OpenSSH client, scp, sftp and rsync over loopback.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on stops")]

mod forwards;
mod harness;
mod hostile;
mod rules;
mod sessions;
mod terminals;
mod transfers;
