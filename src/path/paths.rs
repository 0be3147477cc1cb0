//! The paths to one peer: candidates with their probes, and the primary route among them.

use std::time::{Duration, Instant};

use super::{budget::Budget, route::Route};

/// The most candidates kept for one peer: twice what an announcement may name.
pub const MAX_CANDIDATES: usize = 32;

/// Probes a candidate gets in its life until it has answered once: a path that can be opened answers within the first
/// few, so this many unanswered ones are firm evidence of a dead end.
pub const PROBE_BUDGET: u32 = 32;

/// Probes a second to one peer, over all its candidates.
pub const PER_PEER: u32 = 8;

/// First pause between probes of an unproven candidate; grows by half each time up to [`PROBE_SLOWEST`].
const PROBE_FIRST: Duration = Duration::from_millis(250);

/// Slowest pace of an unproven candidate.
const PROBE_SLOWEST: Duration = Duration::from_secs(10);

/// How often the primary route is probed while packets are sent.
const PRIMARY_ACTIVE: Duration = Duration::from_secs(1);

/// How often any other proven candidate is probed while packets are sent, so that it can take over.
const STANDBY: Duration = Duration::from_secs(15);

/// After this long without packets a peer is idle: only keepalives then, where asked for.
const IDLE_AFTER: Duration = Duration::from_secs(10);

/// How soon an unanswered probe of a proven path is repeated.
const REPEAT: Duration = Duration::from_millis(400);

/// Silence on the primary, while we keep asking, that demotes it.
pub const SILENCE: Duration = Duration::from_millis(2400);

/// A demoted route is not promoted again for this long, doubling with every demotion up to [`COOLDOWN_MAX`].
pub const COOLDOWN: Duration = Duration::from_secs(5);

/// The longest cooldown.
const COOLDOWN_MAX: Duration = Duration::from_secs(300);

/// A plain WireGuard peer's route moves no oftener: who can replay datagrams from elsewhere must not make it flap.
const ROAM_INTERVAL: Duration = Duration::from_secs(1);

/// A direct route takes over from another direct one only if its round trip is at most this share of the other's.
const CLEARLY_SHORTER: f32 = 0.7;

/// One possible way.
#[derive(Debug)]
struct Candidate {
    route: Route,
    /// Probes sent before the first answer.
    spent: u32,
    pace: Duration,
    next_probe: Option<Instant>,
    /// The newest unanswered probe.
    outstanding: Option<(u64, Instant)>,
    /// When the oldest unanswered probe since the last answer was sent.
    unanswered_since: Option<Instant>,
    answered: Option<Instant>,
    round_trip: Option<Duration>,
    cooldown: Duration,
    not_before: Option<Instant>,
    sent: u32,
    lost: u32,
}

impl Candidate {
    fn new(route: Route, now: Instant) -> Self {
        Self {
            route,
            spent: 0,
            pace: PROBE_FIRST,
            next_probe: Some(now),
            outstanding: None,
            unanswered_since: None,
            answered: None,
            round_trip: None,
            cooldown: COOLDOWN,
            not_before: None,
            sent: 0,
            lost: 0,
        }
    }

    fn is_proven(&self) -> bool {
        self.answered.is_some() && self.unanswered_since.is_none()
    }

    fn may_lead(&self, now: Instant) -> bool {
        self.is_proven() && self.not_before.is_none_or(|time| now >= time)
    }
}

/// All ways to one peer.
#[derive(Debug)]
pub struct Paths {
    candidates: Vec<Candidate>,
    primary: Option<Route>,
    last_packet: Option<Instant>,
    keepalive: Option<Duration>,
    window: (Option<Instant>, u32),
    /// When a plain WireGuard peer last moved.
    roamed: Option<Instant>,
}

impl Paths {
    /// No ways yet. `keepalive`: how often the primary is probed even when idle (to masters, so that NATs and
    /// firewalls on the way remember us).
    pub fn new(keepalive: Option<Duration>) -> Self {
        Self {
            candidates: Vec::new(),
            primary: None,
            last_packet: None,
            keepalive,
            window: (None, 0),
            roamed: None,
        }
    }

    /// The peer has started anew: only the way it has come by is known to work, both ways.
    pub fn restart(&mut self, origin: Route, now: Instant) {
        *self = Self::new(self.keepalive);
        self.handle_proven(origin, now);
    }

    /// The chosen route.
    pub fn primary(&self) -> Option<Route> {
        self.primary
    }

    /// Smoothed round trip of the primary.
    pub fn round_trip(&self) -> Option<Duration> {
        self.find(self.primary?)?.round_trip
    }

    /// Share of the primary's probes that got no answer.
    pub fn loss(&self) -> Option<f32> {
        let primary = self.find(self.primary?)?;
        (primary.sent > 0).then(|| primary.lost as f32 / primary.sent as f32)
    }

    /// All routes known, proven or not.
    pub fn routes(&self) -> impl Iterator<Item = Route> + '_ {
        self.candidates.iter().map(|candidate| candidate.route)
    }

    fn find(&self, route: Route) -> Option<&Candidate> {
        self.candidates.iter().find(|candidate| candidate.route == route)
    }

    fn find_mut(&mut self, route: Route) -> Option<&mut Candidate> {
        self.candidates.iter_mut().find(|candidate| candidate.route == route)
    }

    /// Adds a possible way; a known one that had been given up gets a new budget if `renew`.
    pub fn add(&mut self, route: Route, renew: bool, now: Instant) {
        if let Some(known) = self.find_mut(route) {
            if renew && !known.is_proven() && known.next_probe.is_none() {
                *known = Candidate { cooldown: known.cooldown, ..Candidate::new(route, now) };
            }
            return;
        }
        if self.candidates.len() == MAX_CANDIDATES {
            let primary = self.primary;
            let dead = |c: &Candidate| Some(c.route) != primary && !c.is_proven();
            let Some(place) = self.candidates.iter().position(dead) else { return };
            self.candidates.remove(place);
        }
        self.candidates.push(Candidate::new(route, now));
    }

    /// Forgets a way (a relay index that ended). Returns whether the primary went with it.
    pub fn remove(&mut self, route: Route, now: Instant) -> bool {
        self.candidates.retain(|candidate| candidate.route != route);
        if self.primary == Some(route) {
            self.primary = None;
            self.elect(now);
            return true;
        }
        false
    }

    /// The next hop towards a relay has moved: its indexes go with it.
    pub fn move_next_hop(&mut self, old: Route, new: Route) {
        let moved = |route: Route| {
            let is_behind = route.relay.is_some() && route.next_hop() == old;
            if is_behind { Route { relay: route.relay, ..new } } else { route }
        };
        self.candidates.iter_mut().for_each(|candidate| candidate.route = moved(candidate.route));
        self.primary = self.primary.map(moved);
    }

    /// A packet was sent to the peer: it is active. After a pause the primary is checked at once.
    pub fn handle_sent(&mut self, now: Instant) {
        let was_idle = self.last_packet.is_none_or(|last| now.duration_since(last) > IDLE_AFTER);
        self.last_packet = Some(now);
        if was_idle {
            self.check(now);
        }
    }

    /// The peer was heard by this way. If that is not the one we send by, perhaps it has moved, and the primary is dead:
    /// it is asked, at most as often as while packets flow.
    pub fn handle_heard(&mut self, origin: Route, now: Instant) {
        let Some(primary) = self.primary.filter(|primary| *primary != origin) else { return };
        let Some(candidate) = self.find_mut(primary) else { return };
        let was_asked = candidate.unanswered_since.is_some();
        let has_just = candidate.answered.is_some_and(|at| now.duration_since(at) < PRIMARY_ACTIVE);
        if !was_asked && !has_just {
            candidate.next_probe = Some(now);
        }
    }

    /// Probes every way that may work at once: after a change of network, or when something seems wrong.
    pub fn check(&mut self, now: Instant) {
        for candidate in &mut self.candidates {
            if candidate.answered.is_some() || candidate.next_probe.is_some() {
                candidate.next_probe = Some(now);
            }
        }
    }

    /// A handshake or first opened message has proven this route both ways.
    pub fn handle_proven(&mut self, route: Route, now: Instant) {
        self.add(route, true, now);
        if let Some(candidate) = self.find_mut(route) {
            candidate.answered = Some(now);
            candidate.unanswered_since = None;
            candidate.next_probe = Some(now);
        }
        self.elect(now);
    }

    /// Transport data of a plain WireGuard peer, which answers no probes, came by this route: it leads, at most
    /// [`ROAM_INTERVAL`] after the last time that it moved.
    pub fn handle_roamed(&mut self, route: Route, now: Instant) {
        if self.primary == Some(route) {
            return;
        }
        let has_just = self.roamed.is_some_and(|last| now.duration_since(last) < ROAM_INTERVAL);
        if self.primary.is_some() && has_just {
            return;
        }
        self.roamed = Some(now);
        self.candidates.clear();
        self.primary = None;
        self.handle_proven(route, now);
    }

    /// An answer to a probe came in. `None`: nobody asked.
    pub fn handle_reply(&mut self, id: u64, now: Instant) -> Option<Route> {
        let candidate =
            self.candidates.iter_mut().find(|c| c.outstanding.is_some_and(|(o, _)| o == id))?;
        let (_, sent) = candidate.outstanding.take()?;
        let sample = now.duration_since(sent);
        candidate.round_trip =
            Some(candidate.round_trip.map_or(sample, |smooth| (smooth * 7 + sample) / 8));
        candidate.answered = Some(now);
        candidate.unanswered_since = None;
        candidate.pace = PROBE_FIRST;
        candidate.next_probe = None;
        let route = candidate.route;
        self.elect(now);
        self.schedule(now);
        Some(route)
    }

    /// Sending over this route fails (a firewall's EPERM, no route): it is silent from now on.
    pub fn handle_send_failure(&mut self, route: Route, now: Instant) {
        if let Some(candidate) = self.find_mut(route) {
            candidate.unanswered_since.get_or_insert(now);
        }
    }

    /// The next probe to send now, if any: id and route. Call until `None`.
    pub fn poll_probe(
        &mut self,
        budget: &mut Budget,
        mut draw: impl FnMut() -> u64,
        now: Instant,
    ) -> Option<(Route, u64)> {
        self.demote_silent(now);
        self.schedule(now);
        if self.window.0.is_none_or(|start| now.duration_since(start) >= Duration::from_secs(1)) {
            self.window = (Some(now), 0);
        }
        for candidate in &mut self.candidates {
            if candidate.next_probe.is_none_or(|time| time > now) {
                continue;
            }
            let is_unproven = candidate.answered.is_none();
            if is_unproven && candidate.spent >= PROBE_BUDGET {
                candidate.next_probe = None;
                continue;
            }
            let is_allowed = self.window.1 < PER_PEER
                && (!is_unproven
                    || candidate.route.endpoint().is_none_or(|address| budget.spend(address, now)));
            if !is_allowed {
                candidate.next_probe = Some(now + PROBE_FIRST);
                continue;
            }
            self.window.1 += 1;
            candidate.sent += 1;
            if candidate.outstanding.is_some() {
                candidate.lost += 1;
            }
            if candidate.sent >= 64 {
                // Loss is a recent thing: halve the memory.
                candidate.sent /= 2;
                candidate.lost /= 2;
            }
            let id = draw();
            candidate.outstanding = Some((id, now));
            candidate.unanswered_since.get_or_insert(now);
            if is_unproven {
                candidate.spent += 1;
                candidate.next_probe = Some(now + candidate.pace);
                candidate.pace = (candidate.pace * 3 / 2).min(PROBE_SLOWEST);
            } else {
                candidate.next_probe = Some(now + REPEAT);
            }
            return Some((candidate.route, id));
        }
        None
    }

    /// When [`Self::poll_probe`] has something to do next.
    pub fn next_timeout(&self) -> Option<Instant> {
        self.candidates.iter().filter_map(|candidate| candidate.next_probe).min()
    }

    fn is_active(&self, now: Instant) -> bool {
        self.last_packet.is_some_and(|last| now.duration_since(last) <= IDLE_AFTER)
    }

    /// Sets the next probe of proven candidates whose last one was answered, and gives up unanswered ones.
    fn schedule(&mut self, now: Instant) {
        let active = self.is_active(now);
        for candidate in &mut self.candidates {
            let Some(answered) = candidate.answered else { continue };
            let is_primary = Some(candidate.route) == self.primary;
            let pause = match (is_primary, active) {
                (true, true) => Some(PRIMARY_ACTIVE),
                (true, false) => self.keepalive,
                (false, true) => Some(STANDBY),
                (false, false) => None,
            };
            match candidate.unanswered_since {
                None if candidate.next_probe.is_none_or(|time| time > now) => {
                    candidate.next_probe = pause.map(|pause| answered + pause);
                }
                Some(since) if now.duration_since(since) >= SILENCE && !is_primary => {
                    // Silent: unproven again, with what is left of a small budget.
                    candidate.answered = None;
                    candidate.spent = PROBE_BUDGET / 2;
                    candidate.pace = PROBE_SLOWEST / 4;
                    candidate.next_probe = Some(now + candidate.pace);
                }
                None | Some(_) => {}
            }
        }
    }

    /// Takes the lead from a primary that has been silent for [`SILENCE`], if another way is proven.
    fn demote_silent(&mut self, now: Instant) {
        let Some(primary) = self.primary.and_then(|route| self.find_mut(route)) else { return };
        let is_silent =
            primary.unanswered_since.is_some_and(|since| now.duration_since(since) >= SILENCE);
        if !is_silent {
            return;
        }
        primary.not_before = Some(now + primary.cooldown);
        primary.cooldown = (primary.cooldown * 2).min(COOLDOWN_MAX);
        self.primary = None;
        self.elect(now);
    }

    /// Chooses the primary: direct before relayed, then the clearly shorter round trip, else what was chosen before.
    fn elect(&mut self, now: Instant) {
        let current = self.primary.and_then(|route| self.find(route));
        let better = |a: &Candidate, b: &Candidate| {
            if a.route.is_direct() != b.route.is_direct() {
                return a.route.is_direct();
            }
            match (a.round_trip, b.round_trip) {
                (Some(a), Some(b)) => a.as_secs_f32() < b.as_secs_f32() * CLEARLY_SHORTER,
                _ => false,
            }
        };
        let mut best = current;
        for candidate in self.candidates.iter().filter(|candidate| candidate.may_lead(now)) {
            if best.is_none_or(|best| better(candidate, best)) {
                best = Some(candidate);
            }
        }
        // Having been silent is no reason to refuse the only way that answers now.
        let last_resort = || self.candidates.iter().find(|candidate| candidate.is_proven());
        self.primary = best.or_else(last_resort).map(|candidate| candidate.route);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::wire::relay::RelayIndex;

    struct Lab {
        paths: Paths,
        budget: Budget,
        now: Instant,
        next_id: u64,
    }

    fn direct(host: u8) -> Route {
        Route::direct(([192, 0, 2, host], 5).into())
    }

    fn relayed() -> Route {
        Route { relay: Some(RelayIndex(1)), ..direct(99) }
    }

    impl Lab {
        #[expect(clippy::disallowed_methods, reason = "any instant will do")]
        fn new() -> Self {
            let paths = Paths::new(None);
            Self { paths, budget: Budget::default(), now: Instant::now(), next_id: 0 }
        }

        /// Runs for `span` in steps of 50 ms; routes in `alive` answer at once. Returns the probes sent.
        fn run(&mut self, span: Duration, alive: &[Route]) -> Vec<Route> {
            let end = self.now + span;
            let mut sent = Vec::new();
            while self.now < end {
                loop {
                    let next_id = &mut self.next_id;
                    let draw = || {
                        *next_id += 1;
                        *next_id
                    };
                    let Some((route, id)) = self.paths.poll_probe(&mut self.budget, draw, self.now)
                    else {
                        break;
                    };
                    sent.push(route);
                    if alive.contains(&route) {
                        self.paths.handle_reply(id, self.now + Duration::from_millis(1));
                    }
                }
                self.now += Duration::from_millis(50);
            }
            sent
        }
    }

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn a_direct_route_takes_over_from_a_relay_once_it_answers() {
        let mut lab = Lab::new();
        lab.paths.handle_proven(relayed(), lab.now);
        assert_eq!(lab.paths.primary(), Some(relayed()));
        lab.paths.add(direct(1), false, lab.now);
        lab.run(SECOND, &[relayed()]);
        assert_eq!(lab.paths.primary(), Some(relayed()), "unanswered probes promote nothing");
        lab.run(SECOND, &[relayed(), direct(1)]);
        assert_eq!(lab.paths.primary(), Some(direct(1)));
    }

    #[test]
    fn silence_demotes_within_three_seconds_to_a_proven_way() {
        let mut lab = Lab::new();
        lab.paths.handle_proven(relayed(), lab.now);
        lab.paths.handle_proven(direct(1), lab.now);
        lab.paths.handle_sent(lab.now);
        lab.run(SECOND * 2, &[relayed(), direct(1)]);
        assert_eq!(lab.paths.primary(), Some(direct(1)));
        lab.paths.handle_sent(lab.now);
        lab.run(SECOND * 4, &[relayed()]);
        assert_eq!(lab.paths.primary(), Some(relayed()));
    }

    #[test]
    fn a_demoted_route_waits_before_it_leads_again() {
        let mut lab = Lab::new();
        lab.paths.handle_proven(relayed(), lab.now);
        lab.paths.handle_proven(direct(1), lab.now);
        lab.paths.handle_sent(lab.now);
        lab.run(SECOND * 4, &[relayed()]);
        assert_eq!(lab.paths.primary(), Some(relayed()));
        let demoted = lab.now;
        while lab.paths.primary() == Some(relayed()) {
            lab.paths.handle_sent(lab.now);
            lab.run(Duration::from_millis(100), &[relayed(), direct(1)]);
            assert!(lab.now < demoted + SECOND * 60, "it comes back in the end");
        }
        assert!(lab.now >= demoted + SECOND * 3, "not at once");
    }

    #[test]
    fn a_dead_candidate_costs_at_most_its_budget() {
        let mut lab = Lab::new();
        lab.paths.add(direct(1), false, lab.now);
        let sent = lab.run(SECOND * 1000, &[]);
        assert_eq!(sent.len() as u32, PROBE_BUDGET);
    }

    #[test]
    fn an_idle_peer_is_left_in_peace() {
        let mut lab = Lab::new();
        lab.paths.handle_proven(direct(1), lab.now);
        lab.paths.handle_sent(lab.now);
        lab.run(SECOND * 30, &[direct(1)]);
        assert_eq!(lab.run(SECOND * 600, &[direct(1)]).len(), 0);
        assert_eq!(lab.paths.next_timeout(), None);
        lab.paths.handle_sent(lab.now);
        assert!(!lab.run(SECOND, &[direct(1)]).is_empty(), "checked as soon as packets flow");
    }

    #[test]
    fn the_only_way_is_kept_trying_when_it_goes_silent() {
        let mut lab = Lab::new();
        lab.paths.handle_proven(direct(1), lab.now);
        lab.paths.handle_sent(lab.now);
        lab.run(SECOND * 5, &[]);
        assert_eq!(lab.paths.primary(), None);
        lab.run(SECOND * 30, &[direct(1)]);
        assert_eq!(lab.paths.primary(), Some(direct(1)));
    }

    #[test]
    fn a_peer_that_lists_many_addresses_gets_eight_probes_a_second() {
        let mut lab = Lab::new();
        for host in 0..MAX_CANDIDATES as u8 {
            lab.paths.add(direct(host), false, lab.now);
        }
        assert!(lab.run(SECOND, &[]).len() <= PER_PEER as usize);
    }

    #[test]
    fn a_peer_heard_elsewhere_loses_a_dead_route_though_nothing_is_sent() {
        let mut lab = Lab::new();
        lab.paths.handle_proven(direct(1), lab.now);
        lab.run(SECOND * 60, &[direct(1)]);
        lab.paths.add(direct(2), false, lab.now);
        lab.paths.handle_heard(direct(2), lab.now);
        let sent = lab.run(SECOND * 4, &[direct(2)]);
        assert_eq!(lab.paths.primary(), Some(direct(2)));
        assert!(sent.len() < 12, "{} probes", sent.len());
    }

    #[test]
    fn a_plain_peer_moves_at_most_once_a_second() {
        let mut lab = Lab::new();
        lab.paths.handle_roamed(direct(1), lab.now);
        assert_eq!(lab.paths.primary(), Some(direct(1)));
        for _ in 0..100 {
            lab.paths.handle_roamed(direct(2), lab.now);
            lab.paths.handle_roamed(direct(1), lab.now);
        }
        assert_eq!(lab.paths.primary(), Some(direct(1)));
        lab.paths.handle_roamed(direct(2), lab.now + SECOND);
        assert_eq!(lab.paths.primary(), Some(direct(2)));
        assert_eq!(lab.paths.routes().count(), 1, "nothing is kept of where it was");
    }

    #[test]
    fn relay_indexes_follow_their_relay() {
        let mut lab = Lab::new();
        lab.paths.handle_proven(relayed(), lab.now);
        lab.paths.move_next_hop(direct(99), direct(98));
        assert_eq!(lab.paths.primary(), Some(Route { relay: Some(RelayIndex(1)), ..direct(98) }));
    }
}
