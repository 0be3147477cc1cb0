//! clusternet: a rootless, userspace, encrypted virtual LAN for cluster nodes.
pub mod words;
