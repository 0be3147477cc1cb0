//! What is measured on a tunnel, each by one program that speaks across it.

use std::collections::BTreeMap;

use anyhow::{Context, Result, bail, ensure};
use netns_tests::command::{Background, Cmd};
use netns_tests::programs::need;
use serde_json::Value;

use crate::options::Durations;
use crate::pair::{BENCH, Pair};
use crate::peers::Tunnel;
use crate::pingpong::RoundTrips;

/// What came of a measurement, by the names that tables and plots ask for.
pub(crate) type Values = BTreeMap<String, f64>;

const IPERF: u16 = 5301;
const PONG: u16 = 5311;
const NETPIPE: u16 = 5321;

/// Where the servers on `b` listen.
pub(crate) const PORTS: [u16; 3] = [IPERF, PONG, NETPIPE];

/// With IPv4 and UDP headers a packet of 1,400 bytes, which fits the overlay of every peer.
const PAYLOAD: u32 = 1372;

/// A rate counts as carried with so much of it lost at most, per cent.
const CARRIED: f64 = 0.5;

/// A tunnel between two hosts, and what is asked of it.
pub(crate) struct Stage<'p> {
    pub(crate) pair: &'p Pair,
    pub(crate) tunnel: &'p Tunnel,
    pub(crate) durations: Durations,
}

impl Stage<'_> {
    /// A command inside the overlay on one end.
    pub(crate) fn inside(&self, side: &str, command: &str) -> Cmd<'_> {
        self.pair.user(side, &format!("exec {}{command}", self.tunnel.prefix)).limit(90)
    }

    /// The servers that stay up while the tunnel is measured.
    pub(crate) fn servers(&self) -> Result<Vec<Background>> {
        need(&["iperf3"])?;
        Ok(vec![
            self.serve(&format!("iperf3 -s -p {IPERF}"), IPERF)?,
            self.serve(&format!("{BENCH} pong {PONG}"), PONG)?,
        ])
    }

    fn serve(&self, command: &str, port: u16) -> Result<Background> {
        let server = self.inside("b", command).spawn()?;
        self.pair
            .wait_for_listener("b", self.tunnel.prefix, port)
            .with_context(|| server.so_far())?;
        Ok(server)
    }

    /// One TCP flow from `a` to `b`.
    pub(crate) fn tcp(&self) -> Result<Values> {
        let end = self.iperf(&format!("-t {}", self.durations.tcp))?;
        let received = number(&end, "/sum_received/bytes")?;
        Ok(values([
            ("gbit", number(&end, "/sum_received/bits_per_second")? / 1e9),
            ("gigabytes", received / 1e9),
            ("retransmits", number(&end, "/sum_sent/retransmits").unwrap_or(0.0)),
        ]))
    }

    /// As many packets as the sender can make.
    pub(crate) fn udp_flood(&self) -> Result<Values> {
        Ok(self.udp(0.0, self.durations.flood)?.values())
    }

    /// The highest rate of packets that arrives all but whole: doubled until it does not, then halved between.
    pub(crate) fn udp_rate(&self) -> Result<Values> {
        let (mut good, mut bad, mut best) = (0.0, None, None::<Flow>);
        let mut rate = 1e9;
        for _ in 0..self.durations.probes {
            match self.udp(rate, 1) {
                Ok(flow) if flow.loss <= CARRIED => {
                    good = rate;
                    let grown = best.as_ref().is_none_or(|best| flow.sent > 1.1 * best.sent);
                    best = best.filter(|best| best.delivered >= flow.delivered).or(Some(flow));
                    if bad.is_none() && !grown {
                        break; // The sender can do no more.
                    }
                }
                // A tunnel in a flood may not carry iperf3's own connection.
                Ok(_) | Err(_) => bad = Some(rate),
            }
            rate = bad.map_or(2.0 * rate, |bad| (good + bad) / 2.0);
            if bad.is_some_and(|bad| bad - good < 0.05 * bad) {
                break;
            }
        }
        Ok(best.context("no rate was carried")?.values())
    }

    /// Packets at `rate` bit/s, or as many as can be made.
    fn udp(&self, rate: f64, seconds: u32) -> Result<Flow> {
        let window = socket_buffer_limit().min(4 << 20);
        let end = self.iperf(&format!("-u -l {PAYLOAD} -b {rate:.0} -t {seconds} -w {window}"))?;
        let packets = number(&end, "/sum/packets")?;
        let took = number(&end, "/sum/seconds")?;
        let lost = number(&end, "/sum/lost_packets")?;
        ensure!(packets > 0.0 && took > 0.0, "no packets were sent");
        Ok(Flow {
            sent: packets / took / 1e3,
            delivered: (packets - lost) / took / 1e3,
            loss: lost / packets * 100.0,
        })
    }

    fn iperf(&self, options: &str) -> Result<Value> {
        let port = IPERF + self.tunnel.port_shift;
        let command = format!("iperf3 -c {} -p {port} -J {options}", self.tunnel.target);
        let outcome = self.inside("a", &command).run()?;
        let mut said: Value =
            serde_json::from_str(&outcome.stdout).with_context(|| format!("{outcome}"))?;
        if let Some(error) = said.get("error") {
            bail!("iperf3: {error}");
        }
        Ok(said["end"].take())
    }

    /// Round trips of messages of `size` bytes.
    pub(crate) fn round_trips(&self, size: usize) -> Result<Values> {
        let to = format!("{}:{}", self.tunnel.target, PONG + self.tunnel.port_shift);
        let command = format!("{BENCH} ping {to} {size} {}", self.durations.round_trips);
        let said = self.inside("a", &command).ok()?;
        let found: RoundTrips =
            serde_json::from_str(&said).with_context(|| format!("read {said}"))?;
        Ok(values([
            ("median", found.median),
            ("p99", found.p99),
            ("p999", found.p999),
            ("count", found.count as f64),
        ]))
    }

    /// The fastest of NetPIPE's sizes over TCP; of those it came to, if time runs out.
    pub(crate) fn netpipe(&self) -> Result<Values> {
        need(&["NPtcp"])?;
        let options = "-o /dev/null -l 16384 -u 4194304 -n 25 -p 0";
        let _server = self.serve(&format!("NPtcp -P {NETPIPE} {options}"), NETPIPE)?;
        let port = NETPIPE + self.tunnel.port_shift;
        let limit = self.durations.netpipe;
        let command =
            format!("timeout {limit} NPtcp -h {} -P {port} {options}", self.tunnel.target);
        let outcome = self.inside("a", &command).run()?;
        let peak = netpipe_lines(&outcome.text()).map(|line| line.mbit).fold(0.0, f64::max);
        ensure!(peak > 0.0, "{outcome}");
        Ok(values([("gbit", peak / 1e3)]))
    }
}

/// What came through of a flow of packets.
struct Flow {
    /// Thousands a second.
    sent: f64,
    delivered: f64,
    /// Per cent.
    loss: f64,
}

impl Flow {
    fn values(&self) -> Values {
        values([("kpps", self.delivered), ("sent", self.sent), ("loss", self.loss)])
    }
}

/// Names with numbers.
pub(crate) fn values<const N: usize>(pairs: [(&str, f64); N]) -> Values {
    pairs.into_iter().map(|(name, value)| (name.to_owned(), value)).collect()
}

fn number(value: &Value, pointer: &str) -> Result<f64> {
    value
        .pointer(pointer)
        .and_then(Value::as_f64)
        .with_context(|| format!("iperf3 says nothing of {pointer}"))
}

/// What the machine lets an ordinary user's socket hold.
fn socket_buffer_limit() -> u64 {
    let limit = |name: &str| -> Option<u64> {
        std::fs::read_to_string(format!("/proc/sys/net/core/{name}")).ok()?.trim().parse().ok()
    };
    ["rmem_max", "wmem_max"].into_iter().filter_map(limit).min().unwrap_or(212_992)
}

/// One line of NetPIPE's.
pub(crate) struct NetpipeLine {
    pub(crate) bytes: u64,
    pub(crate) mbit: f64,
    /// Half a round trip.
    pub(crate) microseconds: f64,
}

/// Reads `  3:      64 bytes   1000 times -->     25.10 Mbps in      19.45 usec`.
pub(crate) fn netpipe_lines(text: &str) -> impl Iterator<Item = NetpipeLine> {
    text.lines().filter_map(|line| {
        let words: Vec<&str> = line.split_whitespace().collect();
        let before = |unit: &str| {
            let at = words.iter().position(|word| *word == unit)?;
            words.get(at.checked_sub(1)?).copied()
        };
        Some(NetpipeLine {
            bytes: before("bytes")?.parse().ok()?,
            mbit: before("Mbps")?.parse().ok()?,
            microseconds: before("usec")?.parse().ok()?,
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_netpipe_are_read() {
        let text = "Send and receive buffers are 16384 and 131072 bytes\nNow starting the main loop\n  \
            0:   16384 bytes     25 times -->   4711.25 Mbps in      26.53 usec\n  \
            1:   24573 bytes     25 times -->";
        let lines: Vec<NetpipeLine> = netpipe_lines(text).collect();
        assert_eq!(lines.len(), 1);
        assert_eq!(lines[0].bytes, 16384);
        assert!((lines[0].mbit - 4711.25).abs() < 1e-6);
        assert!((lines[0].microseconds - 26.53).abs() < 1e-6);
    }
}
