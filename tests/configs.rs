//! The samples in `configs/` are what the program reads.

use std::{fs, path::Path};

use clusternet::config::{
    FileKind,
    master::{DEFAULT_MTU, Execute, Listen, MasterFile, NodeTable},
    tuning::Tuning,
};

fn sample(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("configs").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

#[test]
fn the_sample_master_file_is_signed_and_complete() {
    let text = sample("master.toml");
    assert_eq!(FileKind::of(&text), Ok(Some(FileKind::Master)));
    let file = MasterFile::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    assert_eq!(file.network.masters.len(), 2);
    assert_eq!(file.node, NodeTable::default());
}

#[test]
fn the_sample_node_table_may_follow_any_master_file() {
    let text = sample("master.toml") + &sample("node.toml");
    let file = MasterFile::parse(&text).unwrap_or_else(|error| panic!("{error}"));
    let NodeTable { key, listen, endpoints, mtu, tuning, execute, instance, log } = file.node;
    assert_eq!(key.as_deref(), Some(Path::new("a.key")));
    assert_eq!(listen, Some(Listen { address: None, port: 51820 }));
    assert_eq!(endpoints.len(), 1);
    assert_eq!((mtu, execute), (DEFAULT_MTU, Execute::Owner));
    let Tuning { workers, cores, poll, suite, offload, socket_buffer, underlay_mtu } = tuning;
    assert_eq!(underlay_mtu, Some(1500));
    assert_eq!((workers, poll, offload), (Some(1), Some(200), Some(true)));
    assert!(!cores.is_empty() && suite.is_some() && socket_buffer.is_some());
    assert!(instance.is_some() && log.is_some(), "every field is shown");
}
