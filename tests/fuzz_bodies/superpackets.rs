//! What the device and the data channel bring: virtio headers, superpackets, neighbours to be joined, headers of messages.

use std::ops::Range;

use clusternet::{
    dataplane::{coalesce::Coalescer, segment::segment as cut},
    wire::{
        channel::{HEADER, Header, MAX_SLICES, PLACE, Place},
        superpacket::{Headers, Kind, VirtioHeader, finish, kind, rebuild, rebuild_parts},
    },
};

use super::recipes::{self, Recipe, is_right, payload};

fn segments(kind: Kind, packet: &[u8]) -> Option<Vec<Vec<u8>>> {
    let mut all = Vec::new();
    cut(kind, &mut packet.to_vec(), |segment| all.push(segment.to_vec())).ok()?;
    Some(all)
}

fn is_sound(packet: &[u8]) -> bool {
    Headers::find(packet).is_ok() && is_right(packet)
}

/// A virtio header and a packet, from a kernel that cannot be trusted.
pub fn virtio(data: &[u8]) -> bool {
    let Some((header, packet)) = VirtioHeader::parse(data) else { return false };
    assert_eq!(header.to_bytes(), data[..10]);
    let _ = finish(&header, &mut packet.to_vec());
    let mut packet = packet.to_vec();
    let len = packet.len();
    let Ok(found) = kind(&header, &mut packet) else { return false };
    assert_eq!(packet.len(), len);
    if found == Kind::Whole {
        return true;
    }
    let (byte, size) = found.to_wire();
    assert_eq!(Kind::from_wire(byte, size), Some(found));
    let Ok(rebuilt) = rebuild(found, &mut packet) else { return false };
    assert!(usize::from(rebuilt.header_len) <= len);
    assert!(usize::from(rebuilt.checksum_start + rebuilt.checksum_offset) + 2 <= len);
    let again = kind(&rebuilt, &mut packet).expect("what is written can be read");
    assert!(again == found || (again == Kind::Unfinished && rebuilt.segment == 0));
    let mut finished = packet.clone();
    finish(&rebuilt, &mut finished).expect("what is written can be finished");
    assert!(is_sound(&finished));
    assert!(segments(found, &packet).is_some_and(|all| all.iter().all(|one| is_sound(one))));
    true
}

/// What kernels hand over.
pub fn handed_over() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for recipe in Recipe::all() {
        let kinds = if recipe.is_tcp {
            [Kind::Tcp(100), Kind::Unfinished]
        } else {
            [Kind::Udp(50), Kind::Unfinished]
        };
        for kind in kinds {
            let mut packet = recipe.unfinished(&payload(333));
            let header = rebuild(kind, &mut packet).expect("well-formed");
            all.push([header.to_bytes().as_slice(), &packet].concat());
        }
        all.push([[0; 10].as_slice(), &recipe.packet(&payload(20))].concat());
    }
    all
}

/// A kind from a byte and a size that need not be sensible.
fn any_kind(byte: u8, size: u16) -> Kind {
    match byte % 4 {
        0 => Kind::Whole,
        1 => Kind::Unfinished,
        2 => Kind::Tcp(size),
        _ => Kind::Udp(size),
    }
}

/// A kind, a size, and a packet that is to be segmented; what comes of it is joined again.
pub fn segment(data: &[u8]) -> bool {
    let Some(([byte, high, low], packet)) = data.split_first_chunk() else { return false };
    let kind = any_kind(*byte, u16::from_be_bytes([*high, *low]));
    let Some(all) = segments(kind, packet) else { return false };
    if kind == Kind::Whole {
        assert_eq!(all, [packet]);
        return true;
    }
    let headers = Headers::find(packet).expect("it has been segmented").end;
    assert!(all.iter().all(|one| is_sound(one)));
    let joined: Vec<u8> = all.iter().flat_map(|one| one[headers..].to_vec()).collect();
    assert_eq!(joined, packet[headers..]);
    let batch: Vec<_> = all.iter().map(|one| (Kind::Whole, one.clone(), 0)).collect();
    let writes = coalesced(&batch);
    let again: Vec<_> =
        writes.iter().flat_map(|(kind, packet)| segments(*kind, packet).expect("joined")).collect();
    assert_eq!(plain(again), plain(all));
    true
}

/// Superpackets to be segmented, behind their kinds.
pub fn to_segment() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for recipe in Recipe::all() {
        let packet = recipe.unfinished(&payload(333));
        let kind = if recipe.is_tcp { 2 } else { 3 };
        for kind in [[kind, 0, 100], [1, 0, 0], [0, 0, 0]] {
            all.push([kind.as_slice(), &packet].concat());
        }
    }
    all
}

/// Joins packets, each in one piece or cut in two.
fn coalesced(batch: &[(Kind, Vec<u8>, usize)]) -> Vec<(Kind, Vec<u8>)> {
    let mut arena: Vec<u8> = batch.iter().flat_map(|(_, packet, _)| packet.clone()).collect();
    let mut coalescer = Coalescer::new(true, batch.len());
    let mut start = 0;
    for (kind, packet, cut) in batch {
        let end = start + packet.len();
        let middle = (start + cut).min(end);
        if *cut == 0 {
            coalescer.push(&mut arena, start..end, *kind);
        } else {
            coalescer.push_pieces(&mut arena, &[start..middle, middle..end], *kind);
        }
        start = end;
    }
    let mut writes = Vec::new();
    coalescer.flush(|kind, pieces: &[Range<usize>]| {
        let mut packet: Vec<u8> =
            pieces.iter().flat_map(|piece| arena[piece.clone()].to_vec()).collect();
        let len = packet.len();
        let result = rebuild_parts(kind, &mut packet[..pieces[0].len()], len);
        assert!(result.is_ok() || pieces.len() <= 2, "what is joined can be written");
        writes.push((kind, packet));
    });
    assert!(writes.len() <= batch.len());
    writes
}

/// In one order, and alike where they mean the same: ids that mean nothing, two zeros of one checksum.
fn plain(mut packets: Vec<Vec<u8>>) -> Vec<Vec<u8>> {
    for packet in packets.iter_mut().filter(|packet| is_sound(packet)) {
        if packet[0] >> 4 == 4 && packet[6] & 0x40 != 0 {
            packet[4..6].fill(0);
        }
        recipes::finish(packet);
    }
    packets.sort();
    packets
}

/// A batch of packets, each behind its kind, size, length and where it is cut.
pub fn coalesce(data: &[u8]) -> bool {
    let mut batch = Vec::new();
    let mut rest = data;
    while let Some(([byte, high, low, len, cut], more)) = rest.split_first_chunk() {
        let (packet, more) = more.split_at(more.len().min(usize::from(*len)));
        rest = more;
        batch.push((
            any_kind(*byte, u16::from_be_bytes([*high, *low])),
            packet.to_vec(),
            usize::from(*cut),
        ));
    }
    let writes = coalesced(&batch);
    let stand_for =
        |kind, packet: &Vec<u8>| segments(kind, packet).unwrap_or_else(|| vec![packet.clone()]);
    // A packet whose lengths lie is set right when it is written: what it stands for is what came of it.
    let came = batch.iter().flat_map(|(kind, packet, cut)| {
        let alone = coalesced(&[(*kind, packet.clone(), *cut)]);
        alone.iter().flat_map(|(kind, packet)| stand_for(*kind, packet)).collect::<Vec<_>>()
    });
    let made = writes.iter().flat_map(|(kind, packet)| stand_for(*kind, packet));
    assert_eq!(plain(made.collect()), plain(came.collect()));
    writes.len() < batch.len()
}

/// Neighbours of a flow: all of them are joined to something.
pub fn batches() -> Vec<Vec<u8>> {
    let mut all = Vec::new();
    for mut recipe in Recipe::all() {
        let mut batch = Vec::new();
        let kind = if recipe.is_tcp { 2 } else { 3 };
        for (kind, size, len, cut) in
            [(0, 0, 30, 0), (1, 0, 30, 90), (kind, 30, 90, 70), (0, 0, 30, 0), (1, 0, 9, 0)]
        {
            let packet = if kind == 0 {
                recipe.packet(&payload(len))
            } else {
                recipe.unfinished(&payload(len))
            };
            batch.extend([kind, 0, size, packet.len() as u8, cut]);
            batch.extend(packet);
            recipe.id = recipe.id.wrapping_add(if size == 0 { 1 } else { 3 });
            recipe.sequence = recipe.sequence.wrapping_add(len as u32);
        }
        all.push(batch);
    }
    all
}

/// A message of the data channel.
pub fn channel_header(data: &[u8]) -> bool {
    let Some((header, sealed)) = Header::parse(data) else { return false };
    assert_eq!([header.to_bytes().as_slice(), sealed].concat(), data);
    assert_eq!(data.len(), HEADER + sealed.len());
    true
}

/// Messages with and without text.
pub fn channel_messages() -> Vec<Vec<u8>> {
    let header = Header { receiver: 0x0102_0304, counter: 1 << 40 };
    [0, 1, 100].map(|len| [header.to_bytes().as_slice(), &payload(len)].concat()).to_vec()
}

/// An opened text.
pub fn place(data: &[u8]) -> bool {
    let Some((place, slice)) = Place::parse(data) else { return false };
    assert_eq!([place.to_bytes().as_slice(), slice].concat(), data);
    assert!(place.number < place.count && place.count <= MAX_SLICES);
    assert_eq!(data.len(), PLACE + slice.len());
    true
}

/// Texts of each kind.
pub fn places() -> Vec<Vec<u8>> {
    let kinds = [Kind::Whole, Kind::Unfinished, Kind::Tcp(1340), Kind::Udp(1)];
    let place = |(number, kind)| Place { number, count: 45, kind }.to_bytes();
    (0..).zip(kinds).map(|place_of| [place(place_of).as_slice(), b"slice"].concat()).collect()
}
