//! `clusternetd`: the daemon that `clusternet join` starts. One binary, several roles: keeper, serve, inside.

pub(crate) mod ssh;

fn main() {}
