//! What programs inside see of the network: the hosts file, ssh's configuration, and who may execute.

use std::{collections::HashMap, net::IpAddr, path::PathBuf, time::Duration};

use anyhow::Context;
use clusternet::{
    api::View,
    config::master::Execute as Policy,
    node::output::Neighbour,
    words::id::{Name, Owner},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::UnixStream,
    sync::watch,
};

use crate::{
    runtime,
    ssh::{Execute, Member, OwnerTable, client},
};

/// Keeps it all up to date.
#[derive(Debug)]
pub(super) struct Publisher {
    network: Name,
    hosts: PathBuf,
    ssh: PathBuf,
    policy: Policy,
    own: (Name, Option<Owner>),
    nodes: Vec<Neighbour>,
    owners: watch::Sender<String>,
}

impl Publisher {
    /// Nothing is written yet. The other value is for [`tell_owners`].
    pub(super) fn new(
        network: Name,
        view: &View,
        policy: Policy,
        own: (Name, Option<Owner>),
    ) -> (Self, watch::Receiver<String>) {
        let (owners, told) = watch::channel(String::new());
        let ssh = view.bin.parent().map_or_else(PathBuf::new, PathBuf::from);
        let hosts = view.hosts.clone();
        (Self { network, hosts, ssh, policy, own, nodes: Vec::new(), owners }, told)
    }

    /// The nodes are these now. Says what could not be written; the rest has been.
    pub(super) fn update(&mut self, nodes: Vec<Neighbour>) -> Vec<anyhow::Error> {
        self.nodes = nodes;
        self.write()
    }

    /// Writes everything (again).
    pub(super) fn write(&self) -> Vec<anyhow::Error> {
        let hosts = runtime::hosts_text(&self.network, &self.nodes);
        let keys: Vec<_> = self.nodes.iter().filter_map(|node| self.key_of(node)).collect();
        let written = [
            runtime::write_hosts(&self.hosts, &hosts),
            client::write(&self.ssh, &keys, client::PORT).context("write ssh's configuration"),
            self.write_owners(),
        ];
        written.into_iter().filter_map(Result::err).collect()
    }

    fn key_of(&self, node: &Neighbour) -> Option<client::NodeKey> {
        Some(client::NodeKey {
            names: vec![node.name.to_string(), format!("{}.{}", node.name, self.network)],
            addresses: vec![node.ipv4.into(), node.ipv6.into()],
            key: node.host?,
        })
    }

    fn write_owners(&self) -> anyhow::Result<()> {
        let line = serde_json::to_string(&owner_table(&self.policy, &self.own, &self.nodes))
            .context("write the owner table")?;
        self.owners.send_replace(line);
        Ok(())
    }
}

/// Who may execute here, by address.
fn owner_table(policy: &Policy, own: &(Name, Option<Owner>), nodes: &[Neighbour]) -> OwnerTable {
    let mut members = HashMap::new();
    for node in nodes {
        let member = Member { name: node.name.clone(), owner: node.owner.clone() };
        let addresses: [IpAddr; 2] = [node.ipv4.into(), node.ipv6.into()];
        members.extend(addresses.map(|address| (address, member.clone())));
    }
    let execute = match policy {
        Policy::Owner => Execute::Owner,
        Policy::None => Execute::Nobody,
        Policy::Owners(owners) => Execute::Owners(owners.clone()),
    };
    OwnerTable { here: Member { name: own.0.clone(), owner: own.1.clone() }, execute, members }
}

/// A `serve` that was started again may know fewer nodes for a moment than the one before it, whose last seconds are not on
/// disk. `inside` goes on with what it was told by that one, or it would end sessions of nodes that have done nothing.
pub(super) const AFTER_RESTART: Duration = Duration::from_secs(5);

/// Tells `inside` who may execute, after `wait`: a line whenever that changes, and whenever `inside` asks. Comes back when the stream fails,
/// which it does not while the keeper lives: it holds both ends.
pub(super) async fn tell_owners(
    stream: std::os::unix::net::UnixStream,
    mut table: watch::Receiver<String>,
    wait: Duration,
) -> anyhow::Result<()> {
    tokio::time::sleep(wait).await;
    stream.set_nonblocking(true).context("prepare the stream to inside")?;
    let mut stream = UnixStream::from_std(stream).context("watch the stream to inside")?;
    // What another `serve` may have left unfinished ends here.
    stream.write_all(b"\n").await.context("write to inside")?;
    let mut asked = [0; 64];
    loop {
        let line = table.borrow_and_update().clone();
        if !line.is_empty() {
            stream.write_all(line.as_bytes()).await.context("write to inside")?;
            stream.write_all(b"\n").await.context("write to inside")?;
        }
        tokio::select! {
            changed = table.changed() => if changed.is_err() { return Ok(()) },
            read = stream.read(&mut asked) => {
                anyhow::ensure!(read.context("hear inside")? > 0, "the stream to inside has ended");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, n: u8, owner: Option<&str>) -> Neighbour {
        Neighbour {
            name: name.parse().unwrap(),
            ipv4: [10, 99, 0, n].into(),
            ipv6: [0xfd00, 0, 0, 0, 0, 0, 0, u16::from(n)].into(),
            host: None,
            owner: owner.map(|owner| owner.parse().unwrap()),
            is_self: n == 1,
        }
    }

    #[test]
    fn who_may_execute_follows_the_users_policy() {
        let nodes = [
            node("head", 1, Some("alice")),
            node("a", 2, Some("alice")),
            node("b", 3, Some("bob")),
            node("c", 4, None),
        ];
        let own = ("head".parse().unwrap(), Some("alice".parse().unwrap()));
        let admits = |policy: &Policy| {
            let table = owner_table(policy, &own, &nodes);
            nodes
                .iter()
                .filter(|node| {
                    let both = [node.ipv4.into(), node.ipv6.into()];
                    let admitted = both.map(|address| table.admit(address).is_ok());
                    assert_eq!(admitted[0], admitted[1], "both families alike");
                    admitted[0]
                })
                .map(|node| node.name.to_string())
                .collect::<Vec<_>>()
        };
        assert_eq!(admits(&Policy::Owner), ["head", "a"]);
        assert!(admits(&Policy::None).is_empty());
        assert_eq!(admits(&Policy::Owners(vec!["bob".parse().unwrap()])), ["b"]);
    }

    #[tokio::test]
    async fn inside_hears_the_table_at_once_on_change_and_on_request() {
        let (ours, theirs) = std::os::unix::net::UnixStream::pair().unwrap();
        let (sender, table) = watch::channel("one".to_owned());
        let task = tokio::spawn(tell_owners(ours, table, Duration::ZERO));
        theirs.set_nonblocking(true).unwrap();
        let mut theirs = UnixStream::from_std(theirs).unwrap();
        let expect = async |theirs: &mut UnixStream, text: &str| {
            let mut got = vec![0; text.len()];
            theirs.read_exact(&mut got).await.unwrap();
            assert_eq!(String::from_utf8(got).unwrap(), text);
        };
        expect(&mut theirs, "\none\n").await;
        sender.send_replace("two".to_owned());
        expect(&mut theirs, "two\n").await;
        theirs.write_all(b"\n").await.unwrap();
        expect(&mut theirs, "two\n").await;
        drop(theirs);
        assert!(task.await.unwrap().is_err());
    }
}
