//! Names of endpoints: asked of the system in the background; the last good answer outlives a name service that is down.

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    time::Duration,
};

use tokio::{task::JoinSet, time::timeout};

use super::store::Resolved;

/// A resolver tries for up to 30 s; nobody wants to wait that long to hear that it failed.
const PATIENCE: Duration = Duration::from_secs(10);

/// Lookups at once: each holds a thread.
const MAX_RUNNING: usize = 16;

/// What became of a lookup.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) host: String,
    pub(super) port: u16,
    /// Or why there is none, in words.
    pub(super) found: Result<Vec<SocketAddr>, String>,
    /// Asked just now, not remembered.
    fresh: bool,
}

/// Looks names up.
#[derive(Debug)]
pub(super) struct Resolver {
    known: Resolved,
    running: JoinSet<Answer>,
    asked: BTreeSet<(String, u16)>,
    changed: bool,
}

impl Resolver {
    /// With what was known last time.
    pub(super) fn new(known: Resolved) -> Self {
        Self { known, running: JoinSet::new(), asked: BTreeSet::new(), changed: false }
    }

    /// Starts a lookup; the answer comes from [`Self::next`].
    pub(super) fn ask(&mut self, host: String, port: u16) {
        if !self.asked.insert((host.clone(), port)) {
            return;
        }
        let full = self.running.len() >= MAX_RUNNING;
        self.running.spawn(async move {
            let found = if let Ok(literal) = host.parse::<IpAddr>() {
                Ok(vec![(literal, port).into()])
            } else if full {
                Err("too many names are being looked up".to_owned())
            } else {
                look_up(&host, port).await
            };
            Answer { host, port, found, fresh: true }
        });
    }

    /// The next answer; waits for ever while nothing is asked.
    pub(super) async fn next(&mut self) -> Answer {
        loop {
            match self.running.join_next().await {
                Some(Ok(answer)) => return self.remember(answer),
                // It was not cancelled, and does not panic.
                Some(Err(_)) => {}
                None => return std::future::pending().await,
            }
        }
    }

    /// What should be kept, if it has changed since the last time.
    pub(super) fn take_changed(&mut self) -> Option<&Resolved> {
        std::mem::take(&mut self.changed).then_some(&self.known)
    }

    /// A good answer is remembered; for a bad one the last good one stands in.
    fn remember(&mut self, mut answer: Answer) -> Answer {
        self.asked.remove(&(answer.host.clone(), answer.port));
        match &answer.found {
            Ok(found) if answer.fresh && answer.host.parse::<IpAddr>().is_err() => {
                let addresses: Vec<IpAddr> = found.iter().map(SocketAddr::ip).collect();
                if self.known.get(&answer.host) != Some(&addresses) {
                    self.known.insert(answer.host.clone(), addresses);
                    self.changed = true;
                }
            }
            Ok(_) => {}
            Err(why) => {
                if let Some(known) = self.known.get(&answer.host) {
                    tracing::debug!(
                        host = answer.host,
                        reason = why,
                        "the last known address is used"
                    );
                    answer.found =
                        Ok(known.iter().map(|ip| SocketAddr::new(*ip, answer.port)).collect());
                    answer.fresh = false;
                }
            }
        }
        answer
    }
}

/// One lookup, for a while.
pub(super) async fn look_up(host: &str, port: u16) -> Result<Vec<SocketAddr>, String> {
    match timeout(PATIENCE, tokio::net::lookup_host((host, port))).await {
        Ok(Ok(found)) => {
            let mut found: Vec<SocketAddr> = found.collect();
            found.dedup();
            if found.is_empty() { Err("it has no address".to_owned()) } else { Ok(found) }
        }
        Ok(Err(error)) => {
            let text = error.to_string();
            let text = text.strip_prefix("failed to lookup address information: ").unwrap_or(&text);
            Err(text.to_lowercase())
        }
        Err(_) => Err("the name service does not answer".to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answer(found: Result<Vec<SocketAddr>, String>) -> Answer {
        Answer { host: "head".to_owned(), port: 5, found, fresh: true }
    }

    #[test]
    fn a_dead_name_service_does_not_make_us_forget() {
        let address: SocketAddr = "192.0.2.1:5".parse().unwrap();
        let mut resolver = Resolver::new(Resolved::new());
        let failed = resolver.remember(answer(Err("down".to_owned())));
        assert_eq!(failed.found, Err("down".to_owned()), "nothing was known");
        resolver.remember(answer(Ok(vec![address])));
        let kept = resolver.take_changed().unwrap().clone();
        assert!(resolver.take_changed().is_none());
        let mut later = Resolver::new(kept);
        assert_eq!(later.remember(answer(Err("down".to_owned()))).found, Ok(vec![address]));
        assert!(later.take_changed().is_none());
    }

    #[tokio::test]
    async fn literals_need_no_name_service() {
        let mut resolver = Resolver::new(Resolved::new());
        resolver.ask("2001:db8::1".to_owned(), 7);
        resolver.ask("2001:db8::1".to_owned(), 7);
        let answer = resolver.next().await;
        assert_eq!(answer.found, Ok(vec!["[2001:db8::1]:7".parse().unwrap()]));
        assert!(resolver.take_changed().is_none(), "there is nothing to remember");
        assert!(resolver.running.is_empty(), "asked once");
    }
}
