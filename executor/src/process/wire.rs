//! What crosses the border between the supervisor and a worker process: frames. What they go through, two rings in
//! shared memory or a socket, is the business of `transport.rs`; both are a stream of bytes.
//!
//! ```text
//!  0        4      5       6         8        12       16         24    32
//!  | length | kind | flags | attempt |  slot  |  task  | sequence | id | payload, `length` bytes |
//!                     │
//!                     └─ LUGGAGE: handles belong to the payload, and their number stands before it
//!
//!                                                                       32                36
//!                                                       ... | sequence | id |  descriptors  | payload, `length` - 4 bytes |
//! ```
//!
//! A large buffer of bytes (`block.rs` of the library) comes behind its frame, and is read into memory of its own. `length`
//! counts it, too; how many of the bytes are its, and where it belongs, stand before the payload (and behind the number
//! of handles), and BLOCK is among the flags.
//!
//! The descriptors themselves go through a second socket (`polypool_ipc::Luggage`), before the frame that announces
//! them. Most calls have none; they take no other path than if there were no luggage at all.
//!
//! All numbers are little-endian. Which call a frame is about stands in the header, outside of the payload, so that a
//! payload that can't be decoded fails one future and nothing else. The supervisor trusts nothing in a worker's frame:
//! a length above the limit, an unknown kind, a call that the worker was not given or luggage that is not as announced
//! ends the worker.

use bytes::{Buf, BytesMut};
use serde::{Deserialize, Serialize};

use crate::buffers;
use crate::codec::{Block, Encoded, MOST_HANDLES, Message};

/// The version of this protocol; both sides must have the same.
pub(super) const PROTOCOL: u32 = 6;

pub(super) const HEADER: usize = 32;

/// How much longer than the limit on messages a frame may be: room for reports of panics and errors.
pub(super) const SLACK: u64 = 1 << 20;

/// The call of the initialiser has this sequence; tasks count from 1.
pub(super) const INITIALIZER: u64 = 0;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub(super) enum Kind {
    /// To the worker: [`Hello`], with three descriptors. One byte follows, with those of the rings.
    Hello = 1,
    /// To the worker: a call.
    Call = 2,
    /// To the worker: there is nothing more to come.
    Exit = 3,
    /// To the worker: the name, by its options, of the call in the next frame.
    Name = 4,
    /// From the worker: [`Ready`].
    Ready = 16,
    /// From the worker: a call whose start was to be announced has begun.
    Started = 17,
    /// From the worker: an encoded result.
    Value = 18,
    /// From the worker: an encoded report of a panic.
    Panicked = 19,
    /// From the worker: an encoded error of the codec.
    Codec = 20,
    /// From the worker: an encoded report of progress.
    Progress = 21,
}

impl Kind {
    fn from_byte(byte: u8) -> Option<Self> {
        Some(match byte {
            1 => Kind::Hello,
            2 => Kind::Call,
            3 => Kind::Exit,
            4 => Kind::Name,
            16 => Kind::Ready,
            17 => Kind::Started,
            18 => Kind::Value,
            19 => Kind::Panicked,
            20 => Kind::Codec,
            21 => Kind::Progress,
            _ => return None,
        })
    }
}

/// The payload is a chunk of calls.
pub(super) const CHUNK: u8 = 1;
/// The worker is to send [`Kind::Started`].
pub(super) const ANNOUNCE: u8 = 2;
/// Handles belong to the payload. Set and cleared by [`put`] and [`take`]: elsewhere, [`Header::luggage`] says it.
const LUGGAGE: u8 = 4;

/// A block comes behind the payload. Set and cleared as LUGGAGE is: elsewhere, [`Header::block`] says it.
const BLOCK: u8 = 8;

/// A number before the payload.
const COUNT: usize = 4;

/// The most numbers there are before a payload: one for the handles, two for the block.
const MOST_COUNTS: usize = 3;

/// Below this size a payload is copied out of what has been read, so that the memory for reading stays in one piece.
const COPIED: usize = 8 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) length: u32,
    pub(super) kind: Kind,
    pub(super) flags: u8,
    /// Which run of the task this is.
    pub(super) attempt: u16,
    /// The claim word of the call.
    pub(super) slot: u32,
    /// The place of the task in the worker's registry.
    pub(super) task: u32,
    pub(super) sequence: u64,
    /// The task's id in the parent.
    pub(super) id: u64,
    /// How many descriptors come with it, on the other socket.
    pub(super) luggage: u32,
    /// How many bytes come behind the payload, as a block.
    pub(super) block: u32,
    /// Where the block belongs.
    pub(super) place: u32,
}

impl Header {
    pub(super) fn new(kind: Kind) -> Self {
        Header {
            length: 0,
            kind,
            flags: 0,
            attempt: 0,
            slot: 0,
            task: 0,
            sequence: 0,
            id: 0,
            luggage: 0,
            block: 0,
            place: 0,
        }
    }

    fn to_bytes(self) -> [u8; HEADER] {
        let mut bytes = [0; HEADER];
        bytes[0..4].copy_from_slice(&self.length.to_le_bytes());
        bytes[4] = self.kind as u8;
        bytes[5] = self.flags;
        bytes[6..8].copy_from_slice(&self.attempt.to_le_bytes());
        bytes[8..12].copy_from_slice(&self.slot.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.task.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.sequence.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.id.to_le_bytes());
        bytes
    }

    fn parse(mut bytes: &[u8]) -> Result<Self, String> {
        let length = bytes.get_u32_le();
        let kind = bytes.get_u8();
        Ok(Header {
            length,
            kind: Kind::from_byte(kind).ok_or_else(|| format!("a frame of the unknown kind {kind}"))?,
            flags: bytes.get_u8(),
            attempt: bytes.get_u16_le(),
            slot: bytes.get_u32_le(),
            task: bytes.get_u32_le(),
            sequence: bytes.get_u64_le(),
            id: bytes.get_u64_le(),
            luggage: 0,
            block: 0,
            place: 0,
        })
    }
}

/// All of a frame but its payload and its block.
pub(super) struct Head {
    bytes: [u8; HEADER + MOST_COUNTS * COUNT],
    length: usize,
}

impl Head {
    /// The caller has checked that the payload fits the limit on messages, which fits `u32`.
    pub(super) fn new(mut header: Header, payload: usize) -> Self {
        let mut bytes = [0; HEADER + MOST_COUNTS * COUNT];
        let mut length = HEADER;
        let mut count = |number: u32| {
            bytes[length..length + COUNT].copy_from_slice(&number.to_le_bytes());
            length += COUNT;
        };
        if header.luggage > 0 {
            header.flags |= LUGGAGE;
            count(header.luggage);
        }
        if header.block > 0 {
            header.flags |= BLOCK;
            count(header.block);
            count(header.place);
        }
        header.length = u32::try_from(length - HEADER + payload + header.block as usize)
            .expect("a payload is below the limit on messages, which fits u32");
        bytes[..HEADER].copy_from_slice(&header.to_bytes());
        Head { bytes, length }
    }

    pub(super) fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }
}

/// A whole frame.
pub(super) fn frame(header: Header, payload: &[u8]) -> Vec<u8> {
    [Head::new(header, payload.len()).bytes(), payload].concat()
}

/// How many bytes of the next frame have not been read yet, as far as can be told; at least 1.
pub(super) fn missing(read: &[u8]) -> usize {
    let whole = match read.first_chunk() {
        Some(length) if read.len() >= HEADER => HEADER + u32::from_le_bytes(*length) as usize,
        _ => HEADER,
    };
    whole.saturating_sub(read.len()).max(1)
}

/// A frame whose block is still to come.
pub(super) struct Pending {
    header: Header,
    payload: Encoded,
    block: Vec<u8>,
}

impl Pending {
    /// What the bytes of the block go behind, and how many there are to come.
    pub(super) fn block(&mut self) -> (&mut Vec<u8>, usize) {
        let left = self.header.block as usize - self.block.len();
        (&mut self.block, left)
    }
}

/// Takes the next whole frame, with its block. While `pending` is some, what is read next belongs to
/// [its block](Pending::block).
///
/// # Errors
/// As [`take`]; or there is no memory for the block.
pub(super) fn take_whole(
    read: &mut BytesMut,
    pending: &mut Option<Pending>,
    limit: u64,
) -> Result<Option<(Header, Message)>, String> {
    if pending.is_none() {
        let Some((header, payload)) = take(read, limit)? else { return Ok(None) };
        if header.block == 0 {
            return Ok(Some((header, payload.into())));
        }
        // Within the limit, and no page of it is touched before the bytes come.
        let mut block = buffers::with_room(header.block as usize).map_err(|error| error.to_string())?;
        let there = read.len().min(header.block as usize);
        block.extend_from_slice(&read[..there]);
        read.advance(there);
        *pending = Some(Pending { header, payload, block });
    }
    let Some(Pending { header, payload, block }) =
        pending.take_if(|pending| pending.block.len() == pending.header.block as usize)
    else {
        return Ok(None);
    };
    let block = Some(Box::new(Block::Received(header.place, block)));
    Ok(Some((header, Message { block, ..payload.into() })))
}

/// Takes the next whole frame out of what has been read so far; its block, if it has one, is what comes next.
///
/// # Errors
/// Says what is wrong with the bytes: an unknown kind, a length above `limit`, or luggage or a block that can't be.
pub(super) fn take(read: &mut BytesMut, limit: u64) -> Result<Option<(Header, Encoded)>, String> {
    if read.len() < HEADER {
        return Ok(None);
    }
    let mut header = Header::parse(&read[..HEADER])?;
    if u64::from(header.length) > limit.saturating_add(SLACK) {
        return Err(format!("a frame of {} bytes, with a limit of {limit}", header.length));
    }
    let mut whole = HEADER + header.length as usize;
    let mut head = HEADER;
    if header.flags & (LUGGAGE | BLOCK) != 0 {
        if !matches!(header.kind, Kind::Call | Kind::Value) {
            return Err(format!("a frame {:?} that comes with descriptors or a block", header.kind));
        }
        let counts = usize::from(header.flags & LUGGAGE != 0) + 2 * usize::from(header.flags & BLOCK != 0);
        if whole < HEADER + counts * COUNT {
            return Err("a frame that does not say how many descriptors or bytes come with it".to_owned());
        }
        let Some(mut counted) = read.get(HEADER..HEADER + counts * COUNT) else { return Ok(None) };
        head += counts * COUNT;
        if header.flags & LUGGAGE != 0 {
            header.luggage = counted.get_u32_le();
            if header.luggage == 0 || header.luggage as usize > MOST_HANDLES {
                return Err(format!("a frame with {} descriptors, of at most {MOST_HANDLES}", header.luggage));
            }
        }
        if header.flags & BLOCK != 0 {
            (header.block, header.place) = (counted.get_u32_le(), counted.get_u32_le());
            if header.block == 0 || header.block as usize > whole - head {
                return Err(format!("a frame of {} bytes with a block of {}", whole - head, header.block));
            }
            whole -= header.block as usize;
        }
        header.flags &= !(LUGGAGE | BLOCK);
    }
    if read.len() < whole {
        return Ok(None);
    }
    let payload = if whole - head < COPIED {
        let payload = Encoded::copy_of(&read[head..whole]);
        read.advance(whole);
        payload
    } else {
        read.advance(head);
        Encoded::Long(read.split_to(whole - head).freeze())
    };
    Ok(Some((header, payload)))
}

/// The frame that these bytes are, and its payload: a whole one and nothing behind it, without luggage and block.
pub(super) fn single(read: &[u8]) -> Option<(Header, &[u8])> {
    let (head, payload) = read.split_at_checked(HEADER)?;
    let header = Header::parse(head).ok()?;
    (header.flags & (LUGGAGE | BLOCK) == 0 && header.length as usize == payload.len()).then_some((header, payload))
}

/// The first frame to a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Hello {
    pub(super) protocol: u32,
    pub(super) name: String,
    /// How many claim words there are.
    pub(super) slots: u64,
    pub(super) max_message_size: u64,
}

/// The first frame of a worker.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct Ready {
    pub(super) protocol: u32,
    pub(super) pid: u32,
    /// Whether it has joined the rings.
    pub(super) ring: bool,
    /// The name and signature of each task it knows, by its place in the registry.
    pub(super) tasks: Vec<(String, String)>,
}

/// What the supervisor writes to a worker's control socket: the call that is cancelled.
pub(super) const CANCEL: usize = 8;

#[cfg(test)]
mod tests {
    use super::*;

    fn taken(read: &mut BytesMut) -> Option<(Header, Vec<u8>)> {
        take(read, 100).unwrap().map(|(header, payload)| (header, payload.to_vec()))
    }

    #[test]
    fn a_frame_comes_back_however_it_is_cut() {
        let header = Header {
            length: 0,
            kind: Kind::Call,
            flags: CHUNK,
            attempt: 3,
            slot: 7,
            task: 9,
            sequence: 1 << 40,
            id: 5,
            luggage: 0,
            block: 0,
            place: 0,
        };
        let laden = Header { luggage: 600, ..header };
        let mut bytes = Vec::new();
        for (header, payload) in [(header, &b"payload"[..]), (laden, b"payload"), (Header::new(Kind::Exit), b"")] {
            bytes.extend_from_slice(&frame(header, payload));
        }
        let mut read = BytesMut::new();
        let mut frames = Vec::new();
        for byte in bytes {
            read.extend_from_slice(&[byte]);
            while let Some(frame) = taken(&mut read) {
                frames.push(frame);
            }
        }
        assert_eq!(frames[0], (Header { length: 7, ..header }, b"payload".to_vec()));
        assert_eq!(frames[1], (Header { length: 11, ..laden }, b"payload".to_vec()));
        assert_eq!(frames[2].0.kind, Kind::Exit);
        assert_eq!(frames.len(), 3);
    }

    #[test]
    fn what_is_missing_of_a_frame_is_known_from_its_header_on() {
        let bytes = frame(Header::new(Kind::Value), &[7; 1_000]);
        for have in 0..bytes.len() {
            let whole = if have < HEADER { HEADER } else { bytes.len() };
            assert_eq!(missing(&bytes[..have]), whole - have);
        }
        assert_eq!(missing(&bytes), 1, "nothing of the one after it is there");
    }

    #[test]
    fn lengths_above_the_limit_and_unknown_kinds_are_errors() {
        let mut header = Header::new(Kind::Value);
        header.length = (SLACK + 101) as u32;
        let mut read = BytesMut::from(&header.to_bytes()[..]);
        assert!(take(&mut read, 100).unwrap_err().contains("limit of 100"));
        let mut bytes = Header::new(Kind::Value).to_bytes();
        bytes[4] = 99;
        assert!(take(&mut BytesMut::from(&bytes[..]), 100).unwrap_err().contains("unknown kind 99"));
    }

    #[test]
    fn a_block_comes_back_however_it_is_cut() {
        let payload = b"payload";
        let block: Vec<u8> = (0..2_000).map(|n| n as u8).collect();
        let head = Header { block: block.len() as u32, place: 3, luggage: 2, ..Header::new(Kind::Value) };
        let plain = frame(Header::new(Kind::Value), b"another");
        let bytes = [Head::new(head, payload.len()).bytes(), payload, &block[..], &plain[..]].concat();
        for step in [1, 7, 300, bytes.len()] {
            let (mut read, mut pending) = (BytesMut::new(), None::<Pending>);
            let (mut at, mut frames) = (0, Vec::new());
            loop {
                while let Some(frame) = take_whole(&mut read, &mut pending, 5_000).unwrap() {
                    frames.push(frame);
                }
                if at == bytes.len() {
                    break;
                }
                // As the sides do it: into the block while one is pending, and no further than it goes.
                let mut count = step.min(bytes.len() - at);
                match pending.as_mut().map(Pending::block) {
                    Some((block, left)) => {
                        count = count.min(left);
                        block.extend_from_slice(&bytes[at..at + count]);
                    }
                    None => read.extend_from_slice(&bytes[at..at + count]),
                }
                at += count;
            }
            let [(header, message), (_, last)] = &frames[..] else { panic!("{} frames", frames.len()) };
            assert_eq!((header.block, header.place, header.luggage, header.flags), (2_000, 3, 2, 0));
            assert_eq!(message.bytes[..], payload[..]);
            assert!(
                matches!(message.block.as_deref(), Some(Block::Received(3, bytes)) if *bytes == block),
                "in steps of {step}"
            );
            assert!(last.block.is_none() && last.bytes[..] == b"another"[..]);
        }
    }

    #[test]
    fn blocks_that_cannot_be_are_errors() {
        let taken = |kind, length: u32, counts: &[u32]| {
            let header = Header { length, flags: BLOCK, ..Header::new(kind) };
            let mut bytes = header.to_bytes().to_vec();
            counts.iter().for_each(|count| bytes.extend_from_slice(&count.to_le_bytes()));
            take_whole(&mut BytesMut::from(&bytes[..]), &mut None, 100)
        };
        assert!(taken(Kind::Value, 50, &[42, 0]).unwrap().is_none(), "it may come");
        assert!(taken(Kind::Value, 50, &[43, 0]).unwrap_err().contains("block of 43"));
        assert!(taken(Kind::Value, 50, &[0, 0]).unwrap_err().contains("block of 0"));
        assert!(taken(Kind::Value, 7, &[1, 0]).unwrap_err().contains("does not say"));
        assert!(taken(Kind::Progress, 50, &[42, 0]).unwrap_err().contains("Progress"));
        assert!(taken(Kind::Value, u32::MAX, &[u32::MAX - 8, 0]).unwrap_err().contains("limit of 100"));
    }

    #[test]
    fn luggage_that_cannot_be_is_an_error() {
        let taken = |kind, flags, payload: &[u8]| {
            let bytes = frame(Header { flags, ..Header::new(kind) }, payload);
            take(&mut BytesMut::from(&bytes[..]), 100)
        };
        assert_eq!(taken(Kind::Value, LUGGAGE, &[1, 0, 0, 0, 7]).unwrap().unwrap().0.luggage, 1);
        assert!(taken(Kind::Value, LUGGAGE, &[1, 0, 0]).unwrap_err().contains("how many"));
        assert!(taken(Kind::Value, LUGGAGE, &[0; 4]).unwrap_err().contains("with 0 descriptors"));
        assert!(taken(Kind::Value, LUGGAGE, &[255; 4]).unwrap_err().contains("of at most"));
        assert!(taken(Kind::Progress, LUGGAGE, &[1, 0, 0, 0]).unwrap_err().contains("Progress"));
    }
}
