//! The UDP socket: which port, and what to say when it cannot be had.

use std::{io, net::SocketAddr};

use anyhow::Context;
use clusternet::{config::master::Listen, sys::udp::Udp};

use super::store::Store;

/// Binds what `[node] listen` says, exactly. Otherwise the port of last time, so that firewalls and peers find us where we were;
/// any other where that is taken.
///
/// # Errors
/// In words: what was tried, why it failed, who could change what.
pub(super) fn bind(listen: Option<Listen>, store: &Store) -> anyhow::Result<(Udp, u16)> {
    let udp = match listen {
        Some(listen) if listen.port != 0 => open(listen.address, listen.port).map_err(|error| {
            let advice = advice(&error, listen.port);
            anyhow::Error::new(error).context(format!("listen on UDP {listen}{advice}"))
        })?,
        Some(_) | None => {
            let address = listen.and_then(|listen| listen.address);
            let last = store.port().and_then(|port| open(address, port).ok());
            match last {
                Some(udp) => udp,
                None => open(address, 0).context("listen on any UDP port")?,
            }
        }
    };
    let port = udp.port().context("ask which UDP port it is")?;
    if store.port() != Some(port)
        && let Err(error) = store.keep_port(port)
    {
        tracing::warn!(error = format!("{error:#}"), "the port will be another one next time");
    }
    Ok((udp, port))
}

fn open(address: Option<std::net::IpAddr>, port: u16) -> io::Result<Udp> {
    match address {
        Some(address) => Udp::bind_to(SocketAddr::new(address, port)),
        None => Udp::bind(port),
    }
}

fn advice(error: &io::Error, port: u16) -> String {
    match error.raw_os_error() {
        Some(libc::EADDRINUSE) => format!(
            " (another program has this port, maybe another instance: `ss -ulnp sport = {port}` shows which; \
             end it, or change `listen` under [node] in master.toml)"
        ),
        Some(libc::EADDRNOTAVAIL) => {
            " (this machine has no such address: change `listen` under [node] in master.toml)".to_owned()
        }
        Some(libc::EACCES) => {
            " (ports below 1024 are for root: change `listen` under [node] in master.toml, or ask an administrator \
             for net.ipv4.ip_unprivileged_port_start)"
                .to_owned()
        }
        Some(_) | None => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_port_is_kept_across_restarts_and_given_up_where_it_is_taken() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let (first, port) = bind(None, &store).unwrap();
        drop(first);
        let (second, again) = bind(None, &store).unwrap();
        assert_eq!(again, port);
        let (_third, other) = bind(None, &store).unwrap();
        assert_ne!(other, port, "it is taken");
        drop(second);
    }

    #[test]
    fn a_port_in_use_is_a_clear_error() {
        let directory = tempfile::tempdir().unwrap();
        let store = Store::new(directory.path());
        let (_taken, port) = bind(None, &store).unwrap();
        let told = bind(Some(Listen { address: None, port }), &store).unwrap_err();
        let told = format!("{told:#}");
        assert!(told.starts_with(&format!("listen on UDP {port} (another program")), "{told}");
        assert!(told.contains("`listen` under [node]") && told.contains("in use"), "{told}");
    }
}
