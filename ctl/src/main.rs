//! `clusternet`: the command line. Blocking; speaks to the daemon over the control socket.

fn main() {}
