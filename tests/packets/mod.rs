//! TCP and UDP packets for tests, built and checked by the RFCs alone: nothing of the library is used here.
#![allow(dead_code, unreachable_pub, reason = "each user takes its part")]

pub const FIN: u8 = 0x01;
pub const SYN: u8 = 0x02;
pub const RST: u8 = 0x04;
pub const PSH: u8 = 0x08;
pub const ACK: u8 = 0x10;
pub const URG: u8 = 0x20;
pub const ECE: u8 = 0x40;
pub const CWR: u8 = 0x80;

/// What stands in the headers of a packet from member 1 to member 2.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Recipe {
    pub is_v6: bool,
    pub is_tcp: bool,
    pub ports: [u16; 2],
    /// TOS or traffic class.
    pub class: u8,
    /// TTL or hop limit.
    pub hops: u8,
    pub flow_label: u32,
    pub id: u16,
    pub may_fragment: bool,
    pub sequence: u32,
    pub ack: u32,
    pub flags: u8,
    pub window: u16,
    pub options: Vec<u8>,
}

impl Recipe {
    pub fn new(is_v6: bool, is_tcp: bool) -> Self {
        Self {
            is_v6,
            is_tcp,
            ports: [40_000, 5001],
            class: 0,
            hops: 64,
            flow_label: 0xb_1234,
            id: 0xfff0,
            may_fragment: false,
            sequence: u32::MAX - 5000,
            ack: 77,
            flags: ACK,
            window: 502,
            options: Vec::new(),
        }
    }

    /// Each of both families with each of both protocols.
    pub fn all() -> [Self; 4] {
        [(false, true), (false, false), (true, true), (true, false)]
            .map(|(v6, tcp)| Self::new(v6, tcp))
    }

    /// Length of IP and transport header.
    pub fn headers(&self) -> usize {
        let ip = if self.is_v6 { 40 } else { 20 };
        ip + if self.is_tcp { 20 + self.options.len() } else { 8 }
    }

    /// The packet, every length and checksum right.
    pub fn packet(&self, payload: &[u8]) -> Vec<u8> {
        let mut transport = Vec::new();
        transport.extend(self.ports[0].to_be_bytes());
        transport.extend(self.ports[1].to_be_bytes());
        if self.is_tcp {
            transport.extend(self.sequence.to_be_bytes());
            transport.extend(self.ack.to_be_bytes());
            let words = 5 + self.options.len() / 4;
            transport.extend([(words as u8) << 4, self.flags]);
            transport.extend(self.window.to_be_bytes());
            transport.extend([0; 4]);
            transport.extend(&self.options);
        } else {
            transport.extend((8 + payload.len() as u16).to_be_bytes());
            transport.extend([0; 2]);
        }
        transport.extend(payload);
        let protocol = if self.is_tcp { 6 } else { 17 };
        let mut packet = Vec::new();
        if self.is_v6 {
            let first = 6 << 28 | u32::from(self.class) << 20 | self.flow_label;
            packet.extend(first.to_be_bytes());
            packet.extend((transport.len() as u16).to_be_bytes());
            packet.extend([protocol, self.hops]);
            for member in [1, 2] {
                packet.extend([0xfd, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, member]);
            }
        } else {
            packet.extend([0x45, self.class]);
            packet.extend((20 + transport.len() as u16).to_be_bytes());
            packet.extend(self.id.to_be_bytes());
            packet.extend([if self.may_fragment { 0 } else { 0x40 }, 0, self.hops, protocol, 0, 0]);
            packet.extend([10, 99, 0, 1, 10, 99, 0, 2]);
        }
        packet.extend(transport);
        finish(&mut packet);
        packet
    }

    /// The packet as a kernel with offloads hands it over: of the checksum only the pseudo-header's part.
    pub fn unfinished(&self, payload: &[u8]) -> Vec<u8> {
        let mut packet = self.packet(payload);
        let parts = Parts::of(&packet);
        let sum = naive(&parts.pseudo_header(&packet));
        packet[parts.checksum..parts.checksum + 2].copy_from_slice(&sum.to_be_bytes());
        packet
    }
}

/// Bytes of which no two stretches of some length are alike.
pub fn payload(len: usize) -> Vec<u8> {
    (0..len).map(|n| (n * 7 + n / 251 + n / 63_000) as u8).collect()
}

/// The sum of RFC 1071, word by word in the order of the network.
pub fn naive(bytes: &[u8]) -> u16 {
    let mut sum = 0_u32;
    for pair in bytes.chunks(2) {
        sum += u32::from(pair[0]) << 8 | pair.get(1).map_or(0, |low| u32::from(*low));
        sum = (sum & 0xffff) + (sum >> 16);
    }
    sum as u16
}

/// Where things stand in a packet without extension headers.
struct Parts {
    is_v6: bool,
    protocol: u8,
    transport: usize,
    checksum: usize,
}

impl Parts {
    fn of(packet: &[u8]) -> Self {
        let is_v6 = packet[0] >> 4 == 6;
        let transport = if is_v6 { 40 } else { usize::from(packet[0] & 0xf) * 4 };
        let protocol = packet[if is_v6 { 6 } else { 9 }];
        let checksum = transport + if protocol == 6 { 16 } else { 6 };
        Self { is_v6, protocol, transport, checksum }
    }

    fn pseudo_header(&self, packet: &[u8]) -> Vec<u8> {
        let mut bytes = packet[if self.is_v6 { 8..40 } else { 12..20 }].to_vec();
        bytes.extend((packet.len() as u32 - self.transport as u32).to_be_bytes());
        bytes.extend([0, 0, 0, self.protocol]);
        bytes
    }
}

/// Makes the checksums of a packet right.
pub fn finish(packet: &mut [u8]) {
    let parts = Parts::of(packet);
    if !parts.is_v6 {
        packet[10..12].fill(0);
        let sum = !naive(&packet[..parts.transport]);
        packet[10..12].copy_from_slice(&sum.to_be_bytes());
    }
    packet[parts.checksum..parts.checksum + 2].fill(0);
    let mut summed = parts.pseudo_header(packet);
    summed.extend(&packet[parts.transport..]);
    let sum = match !naive(&summed) {
        0 if parts.protocol == 17 => 0xffff,
        sum => sum,
    };
    packet[parts.checksum..parts.checksum + 2].copy_from_slice(&sum.to_be_bytes());
}

/// Whether every length and checksum of a packet is right.
pub fn is_right(packet: &[u8]) -> bool {
    let parts = Parts::of(packet);
    let number = |at: usize| usize::from(u16::from_be_bytes([packet[at], packet[at + 1]]));
    let len = if parts.is_v6 { 40 + number(4) } else { number(2) };
    if len != packet.len() {
        return false;
    }
    let datagram =
        if parts.protocol == 17 { number(parts.transport + 4) } else { len - parts.transport };
    let mut summed = parts.pseudo_header(packet);
    summed.extend(&packet[parts.transport..]);
    datagram == len - parts.transport
        && (parts.is_v6 || naive(&packet[..parts.transport]) == 0xffff)
        && naive(&summed) == 0xffff
        && (parts.protocol != 17 || number(parts.checksum) != 0)
}
