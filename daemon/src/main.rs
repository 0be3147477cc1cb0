//! `clusternetd`: the daemon that `clusternet join` starts. The code is in the library of this package.

fn main() -> std::process::ExitCode {
    clusternet_daemon::main()
}
