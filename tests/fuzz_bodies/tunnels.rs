//! Two tunnels and an attacker who owns the network between them.

use clusternet::{
    tunnel::{
        Sink, Tunnel, anonymous,
        gate::{Admission, Gate, ORIGINS_MAX, Origin},
    },
    words::{
        key::{TransportKey, TransportSecret},
        time::{Now, Timestamp},
    },
};

/// A program in bytes, three to a step: what, of which datagram, how.
///
/// Every datagram either end ever sent is kept. A step lets an end speak, or delivers one of those (again, out of order, to
/// the wrong end), or delivers it damaged. What the ends hand out must be what was sealed, once each.
pub fn tunnel(data: &[u8]) -> bool {
    let secrets = [[1; 32], [2; 32]].map(TransportSecret::from_bytes);
    let keys = [secrets[0].public(), secrets[1].public()];
    let mut ends = [
        Tunnel::new(&secrets[0], &keys[1], 1, now()),
        Tunnel::new(&secrets[1], &keys[0], 2, now()),
    ];
    let mut gates = [Gate::new(&keys[0]), Gate::new(&keys[1])];
    let mut wire: Vec<Vec<u8>> = Vec::new();
    let mut sealed: [Vec<Vec<u8>>; 2] = Default::default();
    let mut opened = [false; 2];
    for (number, step) in data.chunks_exact(3).take(200).enumerate() {
        let [what, which, how] = [step[0], step[1], step[2]];
        let end = usize::from(what & 1);
        let mut out = Sink::default();
        let picked = wire.len().checked_sub(1).map(|last| last - usize::from(which) % wire.len());
        match (what >> 1) % 5 {
            0 => {
                let packet = packet(number as u32, how);
                let _ = ends[end].seal(&packet, now(), &mut out);
                sealed[end].push(packet);
            }
            1 => ends[end].initiate(now(), &mut out),
            2 => ends[end].handle_timeout(now(), &mut out),
            3 => {
                let Some(picked) = picked else { continue };
                let datagram = wire[picked].clone();
                let _ = ends[end].handle_datagram(&datagram, now(), &mut out);
                let _ = anonymous(&datagram, &secrets[end]);
            }
            _ => {
                let Some(picked) = picked else { continue };
                let mut datagram = wire[picked].clone();
                let at = usize::from(how) * 7 % datagram.len();
                if how < 200 {
                    datagram[at] ^= 1 | which;
                } else {
                    datagram.truncate(at);
                }
                let origin = Origin::Link(u64::from(which));
                if gates[end].admit(&datagram, origin, now()) == Admission::Pass {
                    let result = ends[end].handle_datagram(&datagram, now(), &mut out);
                    // mac2 is not looked at where there is no load: all else is under a seal.
                    let mac2 = matches!(datagram.len(), 92 | 148) && at >= datagram.len() - 16;
                    assert!(result.is_err() || mac2, "{result:?} for {datagram:?}");
                }
                assert!(gates[end].origins() <= ORIGINS_MAX);
            }
        }
        for packet in out.packets {
            let place = sealed[1 - end].iter().position(|known| *known == packet);
            sealed[1 - end].remove(place.expect("sealed by the other end, and not yet opened"));
            opened[end] = true;
        }
        wire.append(&mut out.datagrams);
    }
    opened == [true; 2]
}

/// An initiation for the holder of this key.
pub fn initiation(key: &TransportKey) -> Vec<u8> {
    let mut out = Sink::default();
    let secret = TransportSecret::from_bytes([6; 32]);
    Tunnel::new(&secret, key, 1, now()).initiate(now(), &mut out);
    out.datagrams.remove(0)
}

#[allow(clippy::disallowed_methods, reason = "boringtun reads the real clock, so this must")]
fn now() -> Now {
    Now { instant: std::time::Instant::now(), wall: Timestamp(0) }
}

fn packet(number: u32, len: u8) -> Vec<u8> {
    let mut packet = vec![0; 44 + usize::from(len)];
    packet[0] = 0x60;
    packet[4..6].copy_from_slice(&(4 + u16::from(len)).to_be_bytes());
    packet[40..44].copy_from_slice(&number.to_be_bytes());
    packet
}

/// A handshake and data both ways; then everything once more.
pub fn programs() -> Vec<Vec<u8>> {
    // Seal at 0; deliver the newest to 1, 0, 1; seal at both ends and deliver.
    let talk = [0, 0, 9, 7, 0, 0, 6, 0, 0, 7, 0, 0, 7, 1, 0, 0, 0, 40, 7, 0, 0, 1, 0, 3, 6, 0, 0];
    let mut again = talk.to_vec();
    for which in 0..8 {
        again.extend_from_slice(&[6, which, 0, 7, which, 0, 8, which, 30, 9, which, 220]);
    }
    vec![talk.to_vec(), again]
}
