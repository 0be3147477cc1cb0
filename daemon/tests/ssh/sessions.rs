//! Commands and shells.

use crate::harness::{Server, have};

#[test]
fn a_command_runs_and_its_status_comes_back() {
    if !have("ssh") {
        return;
    }
    let server = Server::start();
    assert_eq!(server.says("echo hello; pwd"), format!("hello\n{}\n", server.home().display()));
    for (words, status) in
        [("exit 7", 7), ("exit 255", 255), ("true", 0), ("nosuchcommand 2>/dev/null", 127)]
    {
        assert_eq!(server.run(&["127.0.0.1", words], b"").status.code(), Some(status), "{words}");
    }
}
