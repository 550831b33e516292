//! What stands in the ring: chunks, each with a header. Reading a header is a pure function of its bytes.
//!
//! A message that is small enough is one chunk, and is there or isn't. A longer one is a chain of chunks: the first
//! says how long the whole is, the last says that it is the last. Each chunk is published whole, so whoever is killed
//! in the middle of a message leaves a chain without an end, and the next first chunk tells the reader so. Chunks that
//! belong to no message that the reader knows (its beginning went to a reader that died, or was refused) are passed
//! over.

/// How long the header is.
pub(crate) const HEADER: usize = 24;

/// The first chunk of a message.
const FIRST: u8 = 1;
/// The last one.
const LAST: u8 = 2;
/// The message before this one was given up by its sender on purpose; it is to be passed over in silence.
const AFTER_ABANDONED: u8 = 4;

/// The header of a chunk.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Chunk {
    /// How many bytes of the message follow.
    pub(crate) len: u32,
    pub(crate) first: bool,
    pub(crate) last: bool,
    pub(crate) after_abandoned: bool,
    /// A number of the user's, the same in all chunks of a message.
    pub(crate) kind: u8,
    /// How many descriptors belong to the message. Only in the first chunk.
    pub(crate) fds: u16,
    /// How long the whole message is.
    pub(crate) total: u64,
    /// Which parcels on the luggage socket are meant.
    pub(crate) luggage: u64,
}

/// What room a chunk with that many bytes takes in the ring.
pub(crate) const fn room(len: usize) -> usize {
    HEADER + len.next_multiple_of(8)
}

impl Chunk {
    pub(crate) fn encode(&self) -> [u8; HEADER] {
        let flags = [(self.first, FIRST), (self.last, LAST), (self.after_abandoned, AFTER_ABANDONED)];
        let flags = flags.iter().filter(|(set, _)| *set).fold(0, |all, (_, flag)| all | flag);
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.len.to_le_bytes());
        bytes[4] = flags;
        bytes[5] = self.kind;
        bytes[6..8].copy_from_slice(&self.fds.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.total.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.luggage.to_le_bytes());
        bytes
    }

    /// Makes sense of the header at the beginning of `available` bytes of the ring, or says why there is none in it.
    pub(crate) fn parse(bytes: &[u8; HEADER], available: u64) -> Result<Chunk, &'static str> {
        let [l0, l1, l2, l3, flags, kind, f0, f1, rest @ ..] = *bytes;
        let [t0, t1, t2, t3, t4, t5, t6, t7, g0, g1, g2, g3, g4, g5, g6, g7] = rest;
        let chunk = Chunk {
            len: u32::from_le_bytes([l0, l1, l2, l3]),
            first: flags & FIRST != 0,
            last: flags & LAST != 0,
            after_abandoned: flags & AFTER_ABANDONED != 0,
            kind,
            fds: u16::from_le_bytes([f0, f1]),
            total: u64::from_le_bytes([t0, t1, t2, t3, t4, t5, t6, t7]),
            luggage: u64::from_le_bytes([g0, g1, g2, g3, g4, g5, g6, g7]),
        };
        if flags & !(FIRST | LAST | AFTER_ABANDONED) != 0 {
            return Err("a chunk has unknown flags");
        }
        if room(chunk.len as usize) as u64 > available {
            return Err("a chunk is longer than what has been written");
        }
        if u64::from(chunk.len) > chunk.total {
            return Err("a chunk is longer than its message");
        }
        if chunk.first && chunk.last != (u64::from(chunk.len) == chunk.total) {
            return Err("the first chunk of a message contradicts its length");
        }
        if chunk.len == 0 && chunk.total != 0 {
            return Err("a chunk of a message is empty");
        }
        if !chunk.first && (chunk.fds != 0 || chunk.after_abandoned) {
            return Err("a later chunk says what only the first one may");
        }
        Ok(chunk)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ONE: Chunk = Chunk {
        len: 5,
        first: true,
        last: true,
        after_abandoned: false,
        kind: 7,
        fds: 3,
        total: 5,
        luggage: 0x0102_0304_0506_0708,
    };

    #[test]
    fn a_header_survives_the_way_there_and_back() {
        for chunk in [
            ONE,
            Chunk { last: false, total: u64::MAX, after_abandoned: true, ..ONE },
            Chunk { first: false, fds: 0, total: 9, ..ONE },
            Chunk { len: 0, total: 0, ..ONE },
        ] {
            assert_eq!(Chunk::parse(&chunk.encode(), 1 << 20), Ok(chunk));
        }
    }

    #[test]
    fn nonsense_is_refused() {
        for (chunk, available) in [
            (ONE, 31),
            (Chunk { len: u32::MAX, total: u64::MAX, last: false, ..ONE }, 1 << 20),
            (Chunk { total: 4, ..ONE }, 1 << 20),
            (Chunk { total: 6, ..ONE }, 1 << 20),
            (Chunk { last: false, ..ONE }, 1 << 20),
            (Chunk { len: 0, last: false, ..ONE }, 1 << 20),
            (Chunk { first: false, ..ONE }, 1 << 20),
        ] {
            assert!(Chunk::parse(&chunk.encode(), available).is_err(), "{chunk:?} of {available}");
        }
        let mut flags = ONE.encode();
        flags[4] = 0x80;
        assert!(Chunk::parse(&flags, 1 << 20).is_err());
    }

    #[test]
    fn any_bytes_are_either_a_chunk_within_bounds_or_an_error() {
        let mut random = 1_u64;
        for _ in 0..200_000 {
            let mut bytes = [0; HEADER];
            for part in bytes.chunks_mut(8) {
                random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                part.copy_from_slice(&(random >> (random % 60)).to_le_bytes());
            }
            bytes[4] &= 7;
            if let Ok(chunk) = Chunk::parse(&bytes, 4_096) {
                assert!(room(chunk.len as usize) <= 4_096 && u64::from(chunk.len) <= chunk.total);
            }
        }
    }
}
