//! Who may execute here: the rule that exec, shell, sftp and forwards all obey.
//!
//! The overlay address of a connection *is* the proof of identity: the tunnels let a source address through only from the node
//! whose certificate holds it. So the rule is a table from address to node and owner, and a policy over it.

use std::{collections::HashMap, net::IpAddr};

use clusternet::words::id::{Name, Owner};
use serde::{Deserialize, Serialize};

/// Which nodes the user of this machine lets in: `[node] execute`. The user has the last word over the certificates.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Execute {
    /// Nodes whose certificate names the same owner as this node's. Without an owner, nobody: not even this node itself.
    #[default]
    Owner,
    /// Nobody.
    Nobody,
    /// Nodes of exactly these owners.
    Owners(Vec<Owner>),
}

/// A node as the rule sees it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Member {
    /// The node's name.
    pub name: Name,
    /// The owner in its certificate.
    pub owner: Option<Owner>,
}

/// The whole rule at one moment. Replaced as a whole whenever the roster changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct OwnerTable {
    /// This node.
    pub here: Member,
    /// What the machine's user allows.
    pub execute: Execute,
    /// Every overlay address of every node with a valid certificate, this node's own among them.
    pub members: HashMap<IpAddr, Member>,
}

/// Why a node may not execute here. Reaches the terminal of the person who tried.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    /// The address belongs to no valid certificate.
    #[error(
        "{address} may not execute on {here}: {here} knows no valid certificate with this address; \
         look at `clusternet status` on both nodes"
    )]
    Unknown {
        /// Where the connection came from.
        address: IpAddr,
        /// This node.
        here: Name,
    },
    /// The owners differ.
    #[error(
        "node {from} (owner {from_owner}) may not execute on {here} ({}): only nodes of the same owner may; the user of {here} can \
         allow it with {from_owner} in `execute = [..]`, under [node] in its master.toml",
        owner_text(here_owner.as_ref())
    )]
    Other {
        /// The node that tried.
        from: Name,
        /// Its owner.
        from_owner: Owner,
        /// This node.
        here: Name,
        /// This node's owner.
        here_owner: Option<Owner>,
    },
    /// Who has no owner executes nowhere.
    #[error(
        "node {from} (no owner) may not execute on {here}: its certificate names no owner, and such a node executes nowhere; \
         whoever runs the network can issue it one with `clusternet issue --owner`"
    )]
    NoOwner {
        /// The node that tried.
        from: Name,
        /// This node.
        here: Name,
    },
    /// The machine's user lets nobody in.
    #[error(
        "node {from} may not execute on {here}: its user allows nobody (`execute = \"none\"` under [node] in its master.toml)"
    )]
    Nobody {
        /// The node that tried.
        from: Name,
        /// This node.
        here: Name,
    },
    /// The machine's user listed the owners whose nodes may, and this is not one of them.
    #[error(
        "node {from} (owner {from_owner}) may not execute on {here}: its user allows only the owners listed in \
         `execute = [..]`, under [node] in its master.toml"
    )]
    NotListed {
        /// The node that tried.
        from: Name,
        /// Its owner.
        from_owner: Owner,
        /// This node.
        here: Name,
    },
}

fn owner_text(owner: Option<&Owner>) -> String {
    owner.map_or_else(|| "no owner".to_owned(), |owner| format!("owner {owner}"))
}

impl OwnerTable {
    /// Decides for a connection that comes from `address`.
    ///
    /// # Errors
    /// [`Refusal`], in words for the person who tried.
    pub fn admit(&self, address: IpAddr) -> Result<&Member, Refusal> {
        let address = address.to_canonical();
        let here = self.here.name.clone();
        let Some(member) = self.members.get(&address) else {
            return Err(Refusal::Unknown { address, here });
        };
        let from = member.name.clone();
        if self.execute == Execute::Nobody {
            return Err(Refusal::Nobody { from, here });
        }
        let Some(from_owner) = member.owner.clone() else {
            return Err(Refusal::NoOwner { from, here });
        };
        match &self.execute {
            Execute::Owner if self.here.owner.as_ref() == Some(&from_owner) => Ok(member),
            Execute::Owners(owners) if owners.contains(&from_owner) => Ok(member),
            Execute::Owners(_) => Err(Refusal::NotListed { from, from_owner, here }),
            Execute::Owner | Execute::Nobody => {
                Err(Refusal::Other { from, from_owner, here, here_owner: self.here.owner.clone() })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn member(name: &str, owner: Option<&str>) -> Member {
        Member { name: name.parse().unwrap(), owner: owner.map(|owner| owner.parse().unwrap()) }
    }

    fn table(owner: Option<&str>, execute: Execute) -> OwnerTable {
        OwnerTable {
            here: member("a", owner),
            execute,
            members: HashMap::from([
                ("10.99.0.1".parse().unwrap(), member("a", owner)),
                ("10.99.0.2".parse().unwrap(), member("b", Some("alice"))),
                ("10.99.0.3".parse().unwrap(), member("c", Some("bob"))),
                ("10.99.0.4".parse().unwrap(), member("d", None)),
            ]),
        }
    }

    fn admitted(table: &OwnerTable) -> Vec<u8> {
        (1..=5).filter(|n| table.admit(IpAddr::from([10, 99, 0, *n])).is_ok()).collect()
    }

    #[test]
    fn only_the_same_owner_may_execute() {
        assert_eq!(admitted(&table(Some("alice"), Execute::Owner)), [1, 2]);
    }

    #[test]
    fn no_owner_matches_nobody_itself_included() {
        assert_eq!(admitted(&table(None, Execute::Owner)), [0; 0]);
    }

    #[test]
    fn the_user_of_the_machine_has_the_last_word() {
        assert_eq!(admitted(&table(Some("alice"), Execute::Nobody)), [0; 0]);
        let listed = || Execute::Owners(vec!["bob".parse().unwrap()]);
        assert_eq!(admitted(&table(Some("alice"), listed())), [3]);
        assert_eq!(admitted(&table(None, listed())), [3]);
    }

    #[test]
    fn an_ipv4_address_in_ipv6_clothes_is_the_same_address() {
        let table = table(Some("alice"), Execute::Owner);
        assert!(table.admit("::ffff:10.99.0.2".parse().unwrap()).is_ok());
    }

    #[test]
    fn a_refusal_says_who_and_what_to_do() {
        let table = table(Some("alice"), Execute::Owner);
        let text = table.admit("10.99.0.3".parse().unwrap()).unwrap_err().to_string();
        assert!(
            text.starts_with("node c (owner bob) may not execute on a (owner alice): "),
            "{text}"
        );
        assert!(text.contains("with bob in `execute = [..]`"), "{text}");
    }
}
