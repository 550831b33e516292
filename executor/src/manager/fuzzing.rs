//! What reads bytes of a peer, for fuzz targets: compiled with `--cfg fuzzing`, as cargo-fuzz does, and for the test
//! below.
//!
//! Each function takes any bytes, and is right when it returns.

use super::auth::{self, AuthKey, ClientSide, ClientStep, ServerStep};
use super::transport::FrameDecoder;
use super::wire::{self, ClientHello, Fields, Received, ServerHello, read_reply};

/// Frames out of a stream of bytes. The first byte says how long the pieces are in which the others come.
pub fn frames(data: &[u8]) {
    const MAX: usize = 1 << 16;
    let Some((step, mut data)) = data.split_first() else { return };
    let mut decoder = FrameDecoder::new(MAX);
    loop {
        loop {
            let has = decoder.has_frame();
            match decoder.next() {
                Ok(Some(payload)) => assert!(has && decoder.bytes(payload).len() <= MAX),
                Ok(None) => break assert!(!has),
                Err(_) => return assert!(has),
            }
        }
        if data.is_empty() {
            return;
        }
        let room = decoder.room();
        let count = (usize::from(*step) + 1).min(data.len()).min(room.len());
        room[..count].copy_from_slice(&data[..count]);
        decoder.filled(count);
        data = &data[count..];
    }
}

/// The handshake, on both sides, with a key and without: the hello, then the proof or the verdict.
pub fn handshake(data: &[u8]) {
    let Some((hello, rest)) = data.split_first_chunk() else {
        auth::may_be_hello(data);
        return;
    };
    let key = AuthKey::new([7; 32]).ok();
    for key in [None, key.as_ref()] {
        match auth::server_on_hello(key, &[2; 32], &[0; 32], hello, auth::RING) {
            ServerStep::Done(_) => assert!(key.is_none(), "somebody got in without a proof"),
            ServerStep::Challenge(_, await_proof) => {
                if let Some(proof) = rest.first_chunk() {
                    assert!(await_proof.on_proof(proof).1.is_err(), "a proof was guessed");
                }
            }
            ServerStep::Refuse(..) => {}
        }
        match ClientSide::new(key, &[1; 32]).extras(auth::RING).on_hello(hello, &[0; 32]) {
            Ok(ClientStep::Done) => assert!(key.is_none(), "a server got around its proof"),
            Ok(ClientStep::Prove(_, await_verdict)) => {
                if let Some(verdict) = rest.first_chunk() {
                    assert!(await_verdict.on_verdict(verdict).is_err(), "a proof was guessed");
                }
            }
            Err(_) => {}
        }
    }
}

/// A connection through shared memory whose peer writes into the memory what it likes, also where only we write: for
/// each step what is done, and for a lie where and what.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub fn ring(mut data: &[u8]) {
    use std::io::Write as _;
    use std::os::unix::fs::FileExt as _;
    use std::time::{Duration, Instant};

    use super::transport::Limits;

    const MAX: usize = 1 << 12;
    let limits = Limits { max_message: MAX, ring_len: 1 << 12, ..Limits::default() };
    let Ok((mut reader, mut writer, memory, peer, room)) = super::transport::with_a_liar(&limits) else { return };
    writer.set_timeout(Some(Duration::ZERO));
    let mut sent = [0; MAX];
    while let Some(([step, low, high, len], rest)) = data.split_first_chunk() {
        data = rest;
        match step % 8 {
            0..=3 => {
                let lie = &data[..data.len().min(usize::from(*len % 32))];
                data = &data[lie.len()..];
                // The words of both directions, in lines of 128 bytes, or anywhere.
                let at = match step % 8 {
                    0 => 128 + 128 * u64::from(*low % 8) + u64::from(*high % 16),
                    _ => u64::from(u16::from_le_bytes([*low, *high])) % (4_096 + 2 * 4_096),
                };
                let _ = memory.write_all_at(lie, at.min(4_096 * 3 - lie.len() as u64));
            }
            4 => _ = (&peer).write(&[1]),
            5 => _ = (&room).write(&[1]),
            6 => {
                let _ = reader.has_buffered();
                match reader.recv(Some(Instant::now())) {
                    Ok(Some(payload)) => assert!(payload.len() <= MAX),
                    Ok(None) => return,
                    Err(super::TransportError::TimedOut) => {}
                    Err(_) => return,
                }
            }
            _ => {
                sent[0] = *low;
                if writer.send(&sent[..usize::from(u16::from_le_bytes([*low, *high])) % MAX]).is_err() {
                    return;
                }
            }
        }
    }
}

/// A frame as a request and as a reply, and what stands in them; the greetings; and elements of containers.
pub fn requests(data: &[u8]) {
    let _ = read_reply(data);
    let _ = wire::decode::<ClientHello>(data);
    let _ = wire::decode::<ServerHello>(data);
    super::builtin::fuzz_elements(data);
    let Some(request) = Received::read(data) else { return };
    let fields = Fields(request.arguments);
    let _ = fields.clone().text();
    let _ = fields.clone().timeout();
    let _ = fields.clone().flag();
    let mut parts = fields;
    while parts.sized().is_ok_and(|_| !parts.is_empty()) {}
}

/// Numbers that look random, the same in each run (xorshift64; Marsaglia, "Xorshift RNGs", 2003).
#[cfg(test)]
pub(super) fn noise() -> impl FnMut() -> u64 {
    let mut state = 0x9e37_79b9_7f4a_7c15_u64;
    move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    }
}

#[cfg(test)]
mod tests {
    #[test]
    fn what_is_fuzzed_takes_any_bytes() {
        let mut next = super::noise();
        for _ in 0..5_000 {
            let mut bytes = vec![0; (next() % 200) as usize];
            bytes.fill_with(|| if next().is_multiple_of(2) { next() as u8 } else { 0 });
            if next().is_multiple_of(2) && bytes.len() >= 12 {
                bytes[..11].copy_from_slice(b"polypool\0\x01\x01");
            }
            super::frames(&bytes);
            super::handshake(&bytes);
            super::requests(&bytes);
        }
        #[cfg(any(target_os = "linux", target_os = "android"))]
        for _ in 0..500 {
            let mut bytes = vec![0; (next() % 400) as usize];
            bytes.fill_with(|| next() as u8);
            super::ring(&bytes);
        }
    }
}
