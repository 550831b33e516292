//! Bodies in gzip, brotli and zstd. The client could decode them by itself, but would take the first member of several
//! in gzip for the whole, and let a server choose how much memory the others take: up to 1 GiB for one response.

use std::io::{self, Write};
use std::mem;

use brotli_decompressor::{BrotliDecompressStream, BrotliResult, BrotliState, StandardAlloc};
use flate2::write::GzDecoder;
use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use zstd::stream::raw::{self, DParameter, Operation};

use super::failure::Fault;
use crate::output::record::Kind;

/// 8 MiB: no more may be needed for the Web (RFC 9659).
const WINDOW_LOG: u32 = 23;

const PIECE: usize = 64 * 1024;

/// How members of gzip begin.
const MAGIC: [u8; 2] = [0x1f, 0x8b];

/// What stands in `Content-Encoding` and means something: the codings of IANA's registry, with their other names. The
/// rest is nonsense (`none`, `utf-8`), and the body is as it is.
const CODINGS: [&str; 12] = [
    "aes128gcm",
    "br",
    "compress",
    "x-compress",
    "dcb",
    "dcz",
    "deflate",
    "exi",
    "gzip",
    "x-gzip",
    "pack200-gzip",
    "zstd",
];

/// The most bytes that are read for a body of so many: what can't be compressed takes a little more.
pub(super) fn most_compressed(most: u64) -> u64 {
    most.saturating_add(most / 64).saturating_add(64 * 1024)
}

/// Decodes one body, piece by piece.
pub(super) enum Decoder {
    Zstd(Zstd),
    Gzip(Box<Gzip>),
    Brotli(Box<Brotli>),
}

impl Decoder {
    /// For a response that needs it. Its headers are those of the decoded body then, as they are for other encodings.
    /// What can't be decoded is an error if it was the program that `asked`, and otherwise stays as it is.
    pub(super) fn of(response: &mut Response, asked: bool) -> Option<Result<Self, Fault>> {
        if !response.headers().contains_key(CONTENT_ENCODING) {
            return None;
        }
        let lines = response.headers().get_all(CONTENT_ENCODING).iter();
        let codings = lines.map(|line| String::from_utf8_lossy(line.as_bytes())).collect::<Vec<_>>().join(",");
        let is_coding = |name: &&str| CODINGS.iter().any(|coding| name.eq_ignore_ascii_case(coding));
        let codings: Vec<_> = codings.split(',').map(str::trim).filter(is_coding).collect();
        // Their names are case-insensitive, and `x-gzip` is one (RFC 9110, 8.4.1).
        let decoder = match codings[..] {
            [] => return None,
            [name] if name.eq_ignore_ascii_case("zstd") => Zstd::new().map(Decoder::Zstd).map_err(|error| bad(&error)),
            [name] if ["gzip", "x-gzip"].iter().any(|gzip| name.eq_ignore_ascii_case(gzip)) => {
                Ok(Decoder::Gzip(Box::default()))
            }
            [name] if name.eq_ignore_ascii_case("br") => Ok(Decoder::Brotli(Box::default())),
            _ if asked && response.content_length() != Some(0) => return Some(Err(unknown(&codings.join(", ")))),
            _ => return None,
        };
        let headers = response.headers_mut();
        headers.remove(CONTENT_ENCODING);
        headers.remove(CONTENT_LENGTH);
        Some(decoder)
    }

    /// The next decoded piece, while there is one; takes what it needs off the front of `input`.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, Fault> {
        match self {
            Decoder::Zstd(zstd) => zstd.next(input),
            Decoder::Gzip(gzip) => gzip.next(input),
            Decoder::Brotli(brotli) => brotli.next(input),
        }
    }

    /// Whether the body has come to its end, whatever else may come.
    pub(super) fn is_over(&self) -> bool {
        match self {
            Decoder::Zstd(_) => false,
            Decoder::Gzip(gzip) => gzip.over,
            Decoder::Brotli(brotli) => brotli.over,
        }
    }

    /// There is no more input.
    pub(super) fn finish(self) -> Result<(), Fault> {
        match self {
            Decoder::Zstd(zstd) => zstd.finish(),
            Decoder::Gzip(gzip) => gzip.finish(),
            Decoder::Brotli(brotli) => brotli.finish(),
        }
    }
}

/// Members, one after the other (RFC 1952, 2.2). At what comes behind them and is none, the body ends, as for `gzip`.
#[derive(Default)]
pub(super) struct Gzip {
    /// The one that has begun.
    member: Option<GzDecoder<Vec<u8>>>,
    /// Whether there was one before, and the last that came out of it.
    follows: bool,
    last: Vec<u8>,
    /// Whether the first byte of what may be another one has come.
    first: bool,
    over: bool,
}

impl Gzip {
    /// One write decodes no more than fits into the decoder's own buffer, so that memory stays bounded.
    fn next(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, Fault> {
        if input.is_empty() || !self.begins(input) {
            *input = &[];
            return Ok(None);
        }
        let first = mem::take(&mut self.first);
        let member = self.member.get_or_insert_with(|| GzDecoder::new(Vec::new()));
        member.get_mut().clear();
        if first {
            member.write_all(&MAGIC[..1]).map_err(|error| no_gzip(&error))?;
        }
        let read = member.write(input).map_err(|error| no_gzip(&error))?;
        *input = &input[read..];
        if read == 0 {
            // It has come to its end.
            member.try_finish().map_err(|error| no_gzip(&error))?;
            self.last = mem::take(member.get_mut());
            (self.member, self.follows) = (None, true);
            return Ok(Some(&self.last));
        }
        // What is still in that buffer comes out here.
        member.flush().map_err(|error| no_gzip(&error))?;
        Ok(self.member.as_ref().map(|member| &member.get_ref()[..]))
    }

    /// Whether input belongs to a member; the first of all is whatever comes.
    fn begins(&mut self, input: &[u8]) -> bool {
        if self.member.is_some() || !self.follows {
            return true;
        }
        let skipped = usize::from(self.first);
        let (expected, begins) = (&MAGIC[skipped..], input.len() >= MAGIC.len() - skipped);
        self.over |= !input.iter().zip(expected).all(|(byte, expected)| byte == expected);
        self.first |= !self.over && !begins;
        !self.over && begins
    }

    fn finish(self) -> Result<(), Fault> {
        let Some(mut member) = self.member else { return Ok(()) };
        // One that is whole takes no more.
        match member.write(&[0]) {
            Ok(0) => member.try_finish().map_err(|error| no_gzip(&error)),
            _ => Err(Fault::new(Kind::Truncated, "the compressed body (gzip) is not whole")),
        }
    }
}

fn no_gzip(error: &io::Error) -> Fault {
    Fault::new(Kind::Protocol, format!("the body is not the gzip it says it is: {error}"))
}

fn unknown(codings: &str) -> Fault {
    let message =
        format!("the body is encoded as {codings}, which can't be decoded; --no-compressed leaves it as it is");
    Fault::new(Kind::Protocol, message)
}

pub(super) struct Brotli {
    state: BrotliState<StandardAlloc, StandardAlloc, StandardAlloc>,
    output: Box<[u8]>,
    begun: bool,
    over: bool,
}

impl Default for Brotli {
    /// Takes a window of no more than 16 MiB: "large" ones are not for the Web (RFC 7932, 9.1, has none).
    fn default() -> Self {
        let alloc = StandardAlloc::default;
        let state = BrotliState::new_strict(alloc(), alloc(), alloc());
        Brotli { state, output: vec![0; PIECE].into(), begun: false, over: false }
    }
}

impl Brotli {
    /// The next decoded piece, while there is one; takes what it needs off the front of `input`.
    fn next(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, Fault> {
        self.begun |= !input.is_empty();
        if self.over || !self.begun {
            *input = &[];
            return Ok(None);
        }
        let (mut left, mut read) = (input.len(), 0);
        let (mut room, mut written) = (self.output.len(), 0);
        let (output, state) = (&mut self.output, &mut self.state);
        match BrotliDecompressStream(&mut left, &mut read, input, &mut room, &mut written, output, &mut 0, state) {
            BrotliResult::ResultFailure => {
                return Err(Fault::new(Kind::Protocol, "the body is not the brotli it says it is"));
            }
            BrotliResult::ResultSuccess => self.over = true,
            BrotliResult::NeedsMoreInput | BrotliResult::NeedsMoreOutput => {}
        }
        *input = if self.over { &[] } else { &input[read..] };
        Ok((read > 0 || written > 0).then(|| &self.output[..written]))
    }

    /// There is no more input.
    fn finish(&self) -> Result<(), Fault> {
        if self.over || !self.begun {
            return Ok(());
        }
        Err(Fault::new(Kind::Truncated, "the compressed body (br) is not whole"))
    }
}

pub(super) struct Zstd {
    decoder: raw::Decoder<'static>,
    output: Box<[u8]>,
    /// Whether the input so far ends with a frame.
    whole: bool,
}

impl Zstd {
    fn new() -> io::Result<Self> {
        let mut decoder = raw::Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Zstd { decoder, output: vec![0; PIECE].into(), whole: true })
    }

    /// The next decoded piece, while there is one; takes what it needs off the front of `input`.
    fn next(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, Fault> {
        let status = self.decoder.run_on_buffers(input, &mut self.output).map_err(|error| bad(&error))?;
        *input = &input[status.bytes_read..];
        if status.bytes_read == 0 && status.bytes_written == 0 {
            return Ok(None);
        }
        self.whole = status.remaining == 0;
        Ok(Some(&self.output[..status.bytes_written]))
    }

    /// There is no more input.
    fn finish(&self) -> Result<(), Fault> {
        if self.whole { Ok(()) } else { Err(Fault::new(Kind::Truncated, "the compressed body (zstd) is not whole")) }
    }
}

fn bad(error: &io::Error) -> Fault {
    Fault::new(Kind::Protocol, format!("the body is not the zstd it says it is, or needs too much memory: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Without a compressor: a frame of one byte many times over. `window` is the descriptor of RFC 8878, 3.1.1.1.2.
    fn frame(window: u8, blocks: usize) -> Vec<u8> {
        const BLOCK: u32 = 64 * 1024;
        let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0, window];
        for block in 1..=blocks {
            let (run_length, last) = (1 << 1, u32::from(block == blocks));
            frame.extend(&(BLOCK << 3 | run_length | last).to_le_bytes()[..3]);
            frame.push(b'x');
        }
        frame
    }

    fn decode(input: &[u8], at_once: usize) -> Result<Vec<u8>, Fault> {
        let (mut zstd, mut output) = (Zstd::new().unwrap(), Vec::new());
        for mut piece in input.chunks(at_once) {
            while let Some(decoded) = zstd.next(&mut piece)? {
                output.extend_from_slice(decoded);
            }
            assert!(piece.is_empty());
        }
        zstd.finish().map(|()| output)
    }

    #[test]
    fn frames_come_out_whole_however_they_are_cut() {
        let two = [frame(0x40, 3), frame(0x40, 1)].concat();
        for at_once in [1, 2, 7, two.len()] {
            assert_eq!(decode(&two, at_once).unwrap(), vec![b'x'; 4 * 64 * 1024], "{at_once}");
        }
        assert_eq!(decode(b"", 1).unwrap(), b"");
    }

    fn gunzip(input: &[u8], at_once: usize) -> Result<Vec<u8>, Fault> {
        let (mut gzip, mut output) = (Gzip::default(), Vec::new());
        for mut piece in input.chunks(at_once) {
            while let Some(decoded) = gzip.next(&mut piece)? {
                assert!(decoded.len() <= 2 * PIECE, "{}", decoded.len());
                output.extend_from_slice(decoded);
            }
        }
        gzip.finish().map(|()| output)
    }

    #[test]
    fn gzip_is_decoded_however_it_is_cut_and_in_small_pieces() {
        let body = vec![b'x'; 200_000];
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(&body).unwrap();
        let member = encoder.finish().unwrap();
        let two = [&member[..], &member[..]].concat();
        for at_once in [1, 2, 7, two.len()] {
            assert!(gunzip(&two, at_once).unwrap() == [&body[..], &body[..]].concat(), "{at_once}");
            for length in [1, 5, 12, member.len() / 2, member.len() - 1] {
                assert_eq!(gunzip(&member[..length], at_once).unwrap_err().failure.kind, Kind::Truncated, "{length}");
            }
            for place in 0..member.len().min(40) {
                let mut broken = member.clone();
                broken[place] ^= 0x55;
                let _ = gunzip(&broken, at_once); // whatever comes of it, it is no panic
            }
        }
        assert_eq!(gunzip(b"", 1).unwrap(), b"");
    }

    #[test]
    fn what_is_behind_gzip_is_left_out() {
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::best());
        encoder.write_all(b"body").unwrap();
        let member = encoder.finish().unwrap();
        let behind =
            [&b"\0\0\0\0"[..], b"\n", b"some \x1f\x8b\x08 text", b"\x1f", b"\x1f\x1f\x8b", b"\x1fx\x1f", &[0; 512]];
        for behind in behind {
            for at_once in [1, 2, 7, member.len() + 1, 1_000] {
                assert_eq!(gunzip(&[&member, behind].concat(), at_once).unwrap(), b"body", "{behind:?} {at_once}");
            }
        }
        assert_eq!(gunzip(&[&member, &member[..9]].concat(), 7).unwrap_err().failure.kind, Kind::Truncated);
        let wrong = [&member[..member.len() - 5], b"x", &member[member.len() - 4..]].concat();
        assert_ne!(wrong, member);
        assert_eq!(gunzip(&wrong, 7).unwrap_err().failure.kind, Kind::Protocol);
        assert_eq!(gunzip(&[&wrong, &member[..]].concat(), 7).unwrap_err().failure.kind, Kind::Protocol);
    }

    /// A stored block of `x`, after a head that names the size of the window (RFC 7932, 9.1 and 9.2).
    fn stored(window: &[u8], length: u32) -> Vec<u8> {
        // Not the last, four nibbles of length, not compressed; then the last one, which is empty.
        let head = (length - 1) << 3 | 1 << 19;
        let mut bits: Vec<bool> = window.iter().map(|&bit| bit == 1).collect();
        bits.extend((0..20).map(|bit| head >> bit & 1 == 1));
        bits.resize(bits.len().next_multiple_of(8), false);
        let byte = |bits: &[bool]| bits.iter().rev().fold(0, |byte, &bit| byte << 1 | u8::from(bit));
        let mut stream: Vec<u8> = bits.chunks(8).map(byte).collect();
        stream.extend(vec![b'x'; length as usize]);
        stream.push(3);
        stream
    }

    fn unbrotli(input: &[u8], at_once: usize) -> Result<Vec<u8>, Fault> {
        let (mut brotli, mut output) = (Brotli::default(), Vec::new());
        for mut piece in input.chunks(at_once) {
            while let Some(decoded) = brotli.next(&mut piece)? {
                output.extend_from_slice(decoded);
            }
            assert!(piece.is_empty());
        }
        brotli.finish().map(|()| output)
    }

    #[test]
    fn brotli_is_decoded_however_it_is_cut() {
        const SMALL: [u8; 1] = [0]; // 64 KiB
        let stream = stored(&SMALL, 60_000);
        for at_once in [1, 7, stream.len()] {
            assert!(unbrotli(&stream, at_once).unwrap() == vec![b'x'; 60_000], "{at_once}");
            assert!(unbrotli(&[&stream[..], b"behind"].concat(), at_once).unwrap().len() == 60_000);
            for length in [1, 3, 100, stream.len() - 1] {
                assert_eq!(unbrotli(&stream[..length], at_once).unwrap_err().failure.kind, Kind::Truncated, "{length}");
            }
        }
        assert_eq!(unbrotli(b"", 1).unwrap(), b"");
        assert_eq!(unbrotli(b"this is no brotli", 7).unwrap_err().failure.kind, Kind::Protocol);
        // What in brotli is a fault, and in its extension says that the window is large: 30 bits.
        let large = [1, 0, 0, 0, 1, 0, 0, 0, 0, 1, 1, 1, 1, 0];
        assert_eq!(unbrotli(&stored(&large, 1_000), 7).unwrap_err().failure.kind, Kind::Protocol);
    }

    #[test]
    fn what_is_missing_is_missed() {
        let frame = frame(0x40, 2);
        for length in 1..frame.len() {
            assert_eq!(decode(&frame[..length], 5).unwrap_err().failure.kind, Kind::Truncated, "{length}");
        }
    }

    #[test]
    fn what_is_none_or_wants_much_memory_is_refused() {
        assert_eq!(decode(b"this is no zstd", 100).unwrap_err().failure.kind, Kind::Protocol);
        let exponent = |log: u8| (log - 10) << 3;
        assert!(decode(&frame(exponent(23), 1), 100).is_ok());
        assert_eq!(decode(&frame(exponent(24), 1), 100).unwrap_err().failure.kind, Kind::Protocol);
        assert_eq!(decode(&frame(exponent(27), 1), 100).unwrap_err().failure.kind, Kind::Protocol);
    }
}
