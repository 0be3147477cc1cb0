//! A whole node, and who would harm it: a certified member that lies (the stolen master), and strangers.

use clusternet::{
    node::{
        InterfaceAddress, Node, Settings,
        output::{Event, Output},
    },
    path::route::Route,
    tunnel::{Sink, Tunnel},
    wire::{
        exchange::{Features, Suites},
        parts::{self, Assembler},
        record::{self, Introduction, Knowledge, MAX_PAYLOAD, Record},
    },
    words::{
        certificate::Certificate,
        id::Incarnation,
        signed::{RawSigned, Signed},
        time::{Now, Timestamp},
    },
};

use super::{
    network::{NOW, authority, secrets},
    packets, tunnels,
};

/// Frames that the attacker sends after it was accepted: kind, length in two bytes, content. With the data channel if the first
/// kind says so.
///
/// Kind 0 is the payload of a control packet, 1 an encoded record, 2 a packet inside the tunnel, 3 a datagram from elsewhere,
/// 4 a packet that a program of the node's own sends.
pub fn member(data: &[u8]) -> bool {
    let mut attack = Attack::begin(None);
    attack.has_channel = data.first().is_some_and(|kind| kind & 0x80 != 0);
    attack.introduce();
    let mut rest = data;
    for number in 0..64 {
        let Some((&[kind, high, low], more)) = rest.split_first_chunk::<3>() else { break };
        let len = usize::from(u16::from_be_bytes([high, low])).min(more.len());
        let (content, more) = more.split_at(len);
        rest = more;
        match (kind & 0x7f) % 5 {
            0 => attack.seal(&record::packet(&content[..len.min(MAX_PAYLOAD)])),
            1 => {
                // One part of one, as `parts` writes it; longer ones in as many as it takes.
                let chunks: Vec<_> = content.chunks(parts::MAX_SINGLE).take(4).collect();
                for (place, chunk) in chunks.iter().enumerate() {
                    let mut part = vec![1, chunks.len() as u8, place as u8, 0, number, 0, 0, 0];
                    part.extend_from_slice(chunk);
                    attack.seal(&record::packet(&part));
                }
            }
            2 => attack.seal(content),
            3 => {
                let elsewhere = Route::direct("198.51.100.7:7".parse().expect("an endpoint"));
                attack.node.handle_datagram(elsewhere, content, now());
                attack.drain();
            }
            _ => {
                attack.node.handle_packet(content, now());
                attack.drain();
            }
        }
    }
    attack.node.handle_timeout(now());
    attack.drain();
    let _ = attack.node.status(now());
    let _ = attack.node.cache(now());
    attack.accepted
}

/// Records of every kind, packets, and strangers' messages.
pub fn attacks() -> Vec<Vec<u8>> {
    let frame = |kind: u8, content: &[u8]| {
        let [high, low] = (content.len() as u16).to_be_bytes();
        [&[kind, high, low], content].concat()
    };
    let mut all: Vec<Vec<u8>> = packets::records().iter().map(|record| frame(1, record)).collect();
    all.push(all.concat());
    all.push(packets::ips().iter().map(|packet| frame(2, packet)).collect::<Vec<_>>().concat());
    all.push(packets::ips().iter().map(|packet| frame(4, packet)).collect::<Vec<_>>().concat());
    all.push(packets::messages().iter().map(|one| frame(3, one)).collect::<Vec<_>>().concat());
    let channel = |frames: Vec<Vec<u8>>| {
        let mut frames = frames.concat();
        frames[0] |= 0x80;
        frames
    };
    let records = packets::records();
    all.push(channel(records.iter().map(|record| frame(1, record)).collect()));
    all.push(channel(packets::ips().iter().map(|packet| frame(4, packet)).collect()));
    let exchange = packets::exchange().into_iter().map(|record| frame(1, &record));
    all.push(channel(
        exchange.chain(packets::ips().iter().map(|packet| frame(4, packet))).collect(),
    ));
    all.push(frame(3, &tunnels::initiation(&secrets(4).transport.public())));
    all
}

/// What a node kept on disk; whoever can write it is the node's own user, but a crash may cut it.
pub fn cache(data: &[u8]) -> bool {
    let mut attack = Attack::begin(Some(data.to_vec()));
    attack.node.handle_timeout(now());
    attack.drain();
    !attack.node.cache(now()).is_empty()
}

/// A cache with a roster.
pub fn caches() -> Vec<Vec<u8>> {
    let mut attack = Attack::begin(None);
    attack.introduce();
    vec![attack.node.cache(now())]
}

#[allow(clippy::disallowed_methods, reason = "boringtun reads the real clock, so this must")]
fn now() -> Now {
    Now { instant: std::time::Instant::now(), wall: Timestamp(NOW.0 + 60_000) }
}

/// The node `a`, and a tunnel to it from the holder of the master's keys.
struct Attack {
    node: Node,
    tunnel: Tunnel,
    certificate: RawSigned,
    assembler: Assembler,
    accepted: bool,
    has_channel: bool,
    /// Datagrams for the node.
    wire: Vec<Vec<u8>>,
}

impl Attack {
    fn begin(cache: Option<Vec<u8>>) -> Self {
        let (authority, a) = authority();
        let ledger = authority.ledger();
        let own = secrets(4);
        let settings = Settings {
            network: ledger.network.clone(),
            certificate: a.certificate,
            transport: own.transport.clone(),
            host: own.host,
            seed: [8; 32],
            endpoints: Vec::new(),
            cache,
            suites: Suites::of(true),
            stripes: 2,
        };
        let mut node = Node::new(settings, now());
        let address = "192.0.2.4".parse().expect("an address");
        node.handle_interfaces(&[InterfaceAddress { address, prefix_len: 24 }], 51820, now());
        let head = "head".parse().expect("a name");
        let certificate: &Signed<Certificate> = ledger.newest(&head).expect("issued");
        let tunnel =
            Tunnel::new(&secrets(2).transport, &own.transport.public(), 0x0077_7777, now());
        let mut attack = Self {
            node,
            tunnel,
            certificate: certificate.raw().clone(),
            assembler: Assembler::default(),
            accepted: false,
            has_channel: false,
            wire: Vec::new(),
        };
        attack.drain();
        attack
    }

    /// Shows the certificate and accepts the node's.
    fn introduce(&mut self) {
        let introduction = self.introduction(Incarnation(0), false);
        for packet in parts::split(&introduction, 1) {
            self.seal(&packet);
        }
        assert!(self.accepted, "the node accepts its master");
    }

    fn introduction(&self, accepted_incarnation: Incarnation, accepted: bool) -> Record {
        Record::Introduction(Box::new(Introduction {
            certificate: self.certificate.clone(),
            accepted,
            incarnation: Incarnation(77),
            accepted_incarnation,
            wants_answer: !accepted,
            knowledge: Knowledge::default(),
            suites: if self.has_channel { Suites::of(true) } else { Suites::default() },
            features: if self.has_channel { Features::channel(2) } else { Features::default() },
            time: now().wall,
        }))
    }

    /// Sends a packet inside the tunnel, and lets both talk until they are done.
    fn seal(&mut self, packet: &[u8]) {
        let mut out = Sink::default();
        self.tunnel.seal(packet, now(), &mut out);
        self.wire.append(&mut out.datagrams);
        let route = Route::direct("192.0.2.9:51820".parse().expect("an endpoint"));
        for _ in 0..1000 {
            if self.wire.is_empty() {
                return;
            }
            let datagram = self.wire.remove(0);
            self.node.handle_datagram(route, &datagram, now());
            self.drain();
        }
        panic!("the node and one peer talk without end");
    }

    /// Takes all that the node wants; whatever it sends reaches the attacker.
    fn drain(&mut self) {
        for _ in 0..10_000 {
            match self.node.poll_output() {
                Output::Timeout(_) => return,
                Output::Transmit { datagram, .. } => self.receive(&datagram),
                Output::Deliver { packet } => assert!(record::payload(&packet).is_none()),
                Output::Event(Event::Ended { why }) => panic!("a master ended the node: {why}"),
                Output::Event(_) | Output::Directive(_) | Output::Resolve { .. } => {}
            }
        }
        panic!("the node never sleeps");
    }

    fn receive(&mut self, datagram: &[u8]) {
        let mut out = Sink::default();
        let _ = self.tunnel.handle_datagram(datagram, now(), &mut out);
        let mut answers = Vec::new();
        for packet in &out.packets {
            if let Ok(Some(Record::Introduction(theirs))) = self.assembler.handle_packet(packet) {
                self.accepted |= theirs.accepted;
                if theirs.wants_answer {
                    answers.push(self.introduction(theirs.incarnation, true));
                }
            }
        }
        for packet in answers.iter().flat_map(|answer| parts::split(answer, 2)) {
            self.tunnel.seal(&packet, now(), &mut out);
        }
        self.wire.append(&mut out.datagrams);
    }
}
