//! `demo`: a whole network on this machine.

use super::Demo;

pub(super) fn run(_arguments: &Demo) -> anyhow::Result<u8> {
    Ok(0)
}
