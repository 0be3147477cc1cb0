//! `ping`: round trips over the overlay, and which path answered.

use std::time::Duration;

use clusternet::{
    api::{PingReply, Reply, Request},
    sys::clock,
};

use super::Ping;
use crate::{
    control::{self, Instance, PATIENCE},
    exit, output,
};

/// Without `-c`: enough to see whether it is steady, and an end for scripts that forgot it.
const DEFAULT_COUNT: u32 = 4;

/// Pings; 0 when at least one answer came.
pub(super) fn run(arguments: &Ping) -> anyhow::Result<u8> {
    let instance = Instance::pick(arguments.on.on.as_ref())?;
    let count = arguments.count.unwrap_or(DEFAULT_COUNT);
    let timeout_ms = u64::try_from(arguments.timeout.as_millis()).unwrap_or(u64::MAX);
    let mut answers = Vec::new();
    let mut name = arguments.node.clone();
    for sequence in 1..=count {
        let sent = clock::now().instant;
        let request = Request::Ping { node: arguments.node.clone(), timeout_ms };
        let reply = instance.ask(&request, arguments.timeout + PATIENCE)?.0;
        let Reply::Ping(reply) = reply else { return Err(control::unexpected(&reply)) };
        output::say(line(&reply, sequence))?;
        name = reply.name.to_string();
        answers.extend(reply.round_trip);
        if sequence < count {
            let passed = clock::now().instant.duration_since(sent);
            std::thread::sleep(arguments.interval.saturating_sub(passed));
        }
    }
    output::say(summary(&name, count, &answers))?;
    Ok(if answers.is_empty() { exit::NO } else { 0 })
}

fn line(reply: &PingReply, sequence: u32) -> String {
    match reply.round_trip {
        Some(round_trip) => format!(
            "from {} ({}): seq={sequence} time={} by {}",
            reply.name,
            reply.ipv6,
            output::milliseconds(round_trip),
            reply.path.as_deref().unwrap_or("an unknown path"),
        ),
        None => format!("no answer from {} ({}): seq={sequence}", reply.name, reply.ipv6),
    }
}

fn summary(name: &str, count: u32, answers: &[Duration]) -> String {
    let received = u32::try_from(answers.len()).unwrap_or(count);
    let lost = count.saturating_sub(received) * 100 / count.max(1);
    let mut text = format!("--- {name}: {count} sent, {received} received, {lost}% lost");
    if let (Some(least), Some(most)) = (answers.iter().min(), answers.iter().max()) {
        let mean = answers.iter().sum::<Duration>() / received.max(1);
        text.push_str(&format!(
            "; least/mean/most {}/{}/{}",
            output::milliseconds(*least),
            output::milliseconds(mean),
            output::milliseconds(*most)
        ));
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_say_what_came_back_and_which_way() {
        let mut reply = PingReply {
            name: "b".parse().unwrap(),
            ipv6: "fd00::2".parse().unwrap(),
            round_trip: Some(Duration::from_micros(1234)),
            path: Some("direct udp 192.0.2.1:5".to_owned()),
        };
        assert_eq!(
            line(&reply, 1),
            "from b (fd00::2): seq=1 time=1.23 ms by direct udp 192.0.2.1:5"
        );
        reply.round_trip = None;
        assert_eq!(line(&reply, 2), "no answer from b (fd00::2): seq=2");
    }

    #[test]
    fn the_summary_counts() {
        assert_eq!(summary("b", 2, &[]), "--- b: 2 sent, 0 received, 100% lost");
        let answers = [Duration::from_millis(1), Duration::from_millis(3)];
        assert_eq!(
            summary("b", 4, &answers),
            "--- b: 4 sent, 2 received, 50% lost; least/mean/most 1.00 ms/2.00 ms/3.00 ms"
        );
    }
}
