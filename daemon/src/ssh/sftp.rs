//! File transfer (sftp).

use super::session::Wires;
use std::path::PathBuf;
pub(super) async fn run(_home: PathBuf, wires: Wires) {
    let _ = wires;
}
