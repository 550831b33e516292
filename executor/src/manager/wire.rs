//! What stands in a frame, and the small pieces that arguments and results are made of.
//!
//! ```text
//!   request   id u64 | object u64 | method u32 | arguments      id 0: nobody waits for a reply
//!   reply     id u64 | status u8  | result, or the failure
//! ```
//!
//! Numbers are little-endian. The length of a frame and all that has to do with sockets, keys and encryption is the
//! business of `transport.rs`. The values of users are MessagePack, as in the rest of the crate; where a call has
//! several, each is preceded by its length, so that the server can take them apart without knowing their types.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::error::{Failure, ManagerError};
use crate::panic;

/// The version of all this.
pub(super) const PROTOCOL: u32 = 1;

/// The object that stands for the server itself, and its methods.
pub(super) const ROOT: u64 = 0;

pub(super) mod root {
    pub(crate) const CREATE: u32 = 1;
    pub(crate) const ATTACH: u32 = 2;
    pub(crate) const RELEASE: u32 = 3;
    pub(crate) const HOLD: u32 = 4;
    pub(crate) const PUBLISH: u32 = 5;
    pub(crate) const LOOKUP: u32 = 6;
    pub(crate) const UNPUBLISH: u32 = 7;
    pub(crate) const NAMES: u32 = 8;
    pub(crate) const REMOVE: u32 = 9;
    pub(crate) const STATS: u32 = 10;
    pub(crate) const CANCEL: u32 = 11;
    pub(crate) const PING: u32 = 12;
}

/// The first frame of a client, after the handshake of the transport.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ClientHello {
    pub(super) protocol: u32,
    /// For messages to people: who held the lock.
    pub(super) pid: u32,
}

/// The answer to it.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct ServerHello {
    pub(super) protocol: u32,
    /// Tells this server from all that were or will be at its address.
    pub(super) generation: u64,
    pub(super) max_message: u64,
    pub(super) refused: Option<Failure>,
}

pub(super) const REQUEST_HEAD: usize = 20;
pub(super) const REPLY_HEAD: usize = 9;

/// The arguments of a request in the making; the head has its place before them.
#[derive(Clone, Debug)]
pub(super) struct Request(Vec<u8>);

impl Request {
    pub(super) fn new() -> Self {
        let mut bytes = Vec::with_capacity(64);
        bytes.resize(REQUEST_HEAD, 0);
        Request(bytes)
    }

    /// The arguments so far.
    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    /// The arguments alone.
    pub(super) fn arguments(&self) -> &[u8] {
        &self.0[REQUEST_HEAD..]
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    /// Appends a value with its length before it.
    pub(super) fn value<T: Serialize + ?Sized>(mut self, value: &T) -> Result<Self, ManagerError> {
        put_sized(&mut self.0, |bytes| encode_into(value, bytes)).map_err(|why| encode_argument(&why))?;
        Ok(self)
    }

    /// Appends bytes with their length before them.
    pub(super) fn sized(mut self, part: &[u8]) -> Self {
        put_part(&mut self.0, part);
        self
    }

    /// Appends a value that takes all the rest.
    pub(super) fn last<T: Serialize + ?Sized>(mut self, value: &T) -> Result<Self, ManagerError> {
        encode_into(value, &mut self.0).map_err(|why| encode_argument(&why))?;
        Ok(self)
    }

    /// Appends bytes that take all the rest.
    pub(super) fn rest(mut self, rest: &[u8]) -> Self {
        self.0.extend_from_slice(rest);
        self
    }

    /// The arguments of a frame, to be sent again, and the number it had.
    pub(super) fn out_of_frame(frame: Vec<u8>) -> Option<(u64, Self)> {
        let id = Fields(&frame).number().ok()?;
        (frame.len() >= REQUEST_HEAD).then_some((id, Request(frame)))
    }

    pub(super) fn into_frame(mut self, id: u64, object: u64, method: u32) -> Vec<u8> {
        self.0[..8].copy_from_slice(&id.to_le_bytes());
        self.0[8..16].copy_from_slice(&object.to_le_bytes());
        self.0[16..20].copy_from_slice(&method.to_le_bytes());
        self.0
    }
}

fn encode_argument(why: &str) -> ManagerError {
    ManagerError::Codec(format!("the argument could not be encoded: {why}").into())
}

/// A request taken apart.
pub(super) struct Received<'a> {
    pub(super) id: u64,
    pub(super) object: u64,
    pub(super) method: u32,
    pub(super) arguments: &'a [u8],
}

impl<'a> Received<'a> {
    /// `None` when the frame is shorter than a head.
    pub(super) fn read(frame: &'a [u8]) -> Option<Self> {
        let mut fields = Fields(frame);
        Some(Received {
            id: fields.number().ok()?,
            object: fields.number().ok()?,
            method: u32::from_le_bytes(fields.take(4).ok()?.try_into().ok()?),
            arguments: fields.0,
        })
    }
}

/// A result in the making; the head of the reply has its place before it.
#[derive(Debug)]
pub(super) struct Body(Vec<u8>);

impl Body {
    pub(super) fn new() -> Self {
        let mut bytes = Vec::with_capacity(32);
        bytes.resize(REPLY_HEAD, 0);
        Body(bytes)
    }

    pub(super) fn bytes(&mut self) -> &mut Vec<u8> {
        &mut self.0
    }

    pub(super) fn number(mut self, number: u64) -> Self {
        self.0.extend_from_slice(&number.to_le_bytes());
        self
    }

    pub(super) fn flag(mut self, flag: bool) -> Self {
        self.0.push(u8::from(flag));
        self
    }

    pub(super) fn rest(mut self, rest: &[u8]) -> Self {
        self.0.extend_from_slice(rest);
        self
    }

    pub(super) fn sized(mut self, part: &[u8]) -> Self {
        put_part(&mut self.0, part);
        self
    }

    /// A flag, and after it the value if there is one.
    pub(super) fn optional(self, value: Option<&[u8]>) -> Self {
        match value {
            Some(value) => self.flag(true).rest(value),
            None => self.flag(false),
        }
    }

    pub(super) fn into_frame(mut self, id: u64) -> Vec<u8> {
        self.0[..8].copy_from_slice(&id.to_le_bytes());
        self.0
    }
}

/// The frame of a failed request.
pub(super) fn failure_frame(id: u64, failure: &Failure) -> Vec<u8> {
    let mut body = Body::new();
    body.0[8] = 1;
    if encode_into(failure, &mut body.0).is_err() {
        body.0.truncate(REPLY_HEAD);
    }
    body.into_frame(id)
}

/// A reply taken apart: whose it is, and the result.
pub(super) fn read_reply(frame: &[u8]) -> Option<(u64, Result<&[u8], Failure>)> {
    let mut fields = Fields(frame);
    let id = fields.number().ok()?;
    let result = match fields.take(1).ok()?[0] {
        0 => Ok(fields.0),
        _ => Err(crate::codec::decode(fields.0)
            .unwrap_or_else(|why| Failure::Codec(format!("the manager's failure could not be decoded: {why}")))),
    };
    Some((id, result))
}

fn put_part(bytes: &mut Vec<u8>, part: &[u8]) {
    bytes.extend_from_slice(&u32::try_from(part.len()).unwrap_or(u32::MAX).to_le_bytes());
    bytes.extend_from_slice(part);
}

/// Runs `write`, and puts the length of what it wrote before it.
pub(super) fn put_sized<E>(bytes: &mut Vec<u8>, write: impl FnOnce(&mut Vec<u8>) -> Result<(), E>) -> Result<(), E> {
    let at = bytes.len();
    bytes.extend_from_slice(&[0; 4]);
    write(bytes)?;
    let len = u32::try_from(bytes.len() - at - 4).unwrap_or(u32::MAX);
    bytes[at..at + 4].copy_from_slice(&len.to_le_bytes());
    Ok(())
}

/// Reads fields one after another; what is not there is a failure, for nothing from a peer is believed.
#[derive(Clone, Copy)]
pub(super) struct Fields<'a>(pub(super) &'a [u8]);

impl<'a> Fields<'a> {
    pub(super) fn take(&mut self, len: usize) -> Result<&'a [u8], Failure> {
        if len > self.0.len() {
            return Err(Failure::Codec("the message is shorter than it must be".to_owned()));
        }
        let (part, rest) = self.0.split_at(len);
        self.0 = rest;
        Ok(part)
    }

    pub(super) fn number(&mut self) -> Result<u64, Failure> {
        let bytes = self.take(8)?;
        Ok(u64::from_le_bytes(bytes.try_into().unwrap_or_default()))
    }

    pub(super) fn flag(&mut self) -> Result<bool, Failure> {
        Ok(self.take(1)?[0] != 0)
    }

    pub(super) fn sized(&mut self) -> Result<&'a [u8], Failure> {
        let len = self.take(4)?;
        let len = u32::from_le_bytes(len.try_into().unwrap_or_default());
        self.take(len as usize)
    }

    pub(super) fn rest(self) -> &'a [u8] {
        self.0
    }

    pub(super) fn text(&mut self) -> Result<&'a str, Failure> {
        std::str::from_utf8(self.sized()?).map_err(|_| Failure::Codec("a name is not UTF-8".to_owned()))
    }

    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// A number of nanoseconds; none at all is no limit.
    pub(super) fn timeout(&mut self) -> Result<Option<std::time::Duration>, Failure> {
        Ok(match self.number()? {
            u64::MAX => None,
            nanoseconds => Some(std::time::Duration::from_nanos(nanoseconds)),
        })
    }
}

/// The other half of [`Fields::timeout`]; what is longer than 584 years is no limit.
pub(super) fn timeout_number(timeout: Option<std::time::Duration>) -> u64 {
    timeout.map_or(u64::MAX, |timeout| u64::try_from(timeout.as_nanos()).unwrap_or(u64::MAX))
}

/// Appends a value; the encoder is the user's code, so a panic of it is an error as well.
pub(super) fn encode_into<T: Serialize + ?Sized>(value: &T, bytes: &mut Vec<u8>) -> Result<(), String> {
    let encode = || value.serialize(&mut rmp_serde::Serializer::new(bytes).with_struct_map());
    match panic::catch(encode) {
        Ok(result) => result.map_err(|error| error.to_string()),
        Err(report) => Err(format!("its encoder panicked{report}")),
    }
}

/// Decodes a value; a panic of its decoder is an error as well.
pub(super) fn decode<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, String> {
    match panic::catch(|| crate::codec::decode(bytes)) {
        Ok(result) => result,
        Err(report) => Err(format!("its decoder panicked{report}")),
    }
}

/// Decodes what came from the server.
pub(super) fn decode_result<T: DeserializeOwned>(bytes: &[u8]) -> Result<T, ManagerError> {
    decode(bytes).map_err(|why| ManagerError::Codec(format!("the result could not be decoded: {why}").into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_and_replies_survive_the_way() {
        let frame = Request::new().value("key").unwrap().number(9).rest(b"rest").into_frame(3, 4, 5);
        let read = Received::read(&frame).unwrap();
        assert_eq!((read.id, read.object, read.method), (3, 4, 5));
        let mut fields = Fields(read.arguments);
        assert_eq!(decode::<String>(fields.sized().unwrap()).unwrap(), "key");
        assert_eq!(fields.number().unwrap(), 9);
        assert_eq!(fields.rest(), b"rest");

        let frame = Body::new().optional(Some(b"value")).into_frame(8);
        let (id, result) = read_reply(&frame).unwrap();
        assert_eq!((id, result.unwrap()), (8, &b"\x01value"[..]));
        let (id, result) = read_reply(&failure_frame(7, &Failure::Closed)).map(|(id, r)| (id, r.unwrap_err())).unwrap();
        assert!(id == 7 && matches!(result, Failure::Closed));
    }

    #[test]
    fn what_is_cut_off_is_a_failure_and_no_panic() {
        let whole = Request::new().value("key").unwrap().number(1).into_frame(1, 2, 3);
        for len in 0..whole.len() {
            let Some(read) = Received::read(&whole[..len]) else { continue };
            let mut fields = Fields(read.arguments);
            assert!(fields.sized().and_then(|_| fields.number()).is_err());
        }
        let reply = failure_frame(1, &Failure::Poisoned { pid: 4 });
        for len in 0..reply.len() {
            let _ = read_reply(&reply[..len]);
        }
        // A length that says more than there is.
        assert!(Fields(&[255, 255, 255, 255, 0]).sized().is_err());
    }
}
