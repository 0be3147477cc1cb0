//! clusternet: a rootless, userspace, encrypted virtual LAN for cluster nodes.

pub mod api;
pub mod config;
pub mod dataplane;
pub mod node;
pub mod path;
pub mod roster;
pub mod sys;
pub mod tunnel;
pub mod wire;
pub mod words;
