//! Bodies in zstd. The client decodes gzip and brotli by itself, and could do this too, but would let a server choose
//! how much memory it takes: up to 128 MiB for one response.

use std::io;

use reqwest::Response;
use reqwest::header::{CONTENT_ENCODING, CONTENT_LENGTH};
use zstd::stream::raw::{DParameter, Decoder, Operation};

use super::failure::Fault;
use crate::output::record::Kind;

/// 8 MiB: no more may be needed for the Web (RFC 9659).
const WINDOW_LOG: u32 = 23;

const PIECE: usize = 64 * 1024;

/// Decodes one body, piece by piece.
pub(super) struct Zstd {
    decoder: Decoder<'static>,
    output: Box<[u8]>,
    /// Whether the input so far ends with a frame.
    whole: bool,
}

impl Zstd {
    /// For a response that needs it. Its headers are those of the decoded body then, as they are for other encodings.
    pub(super) fn of(response: &mut Response) -> Option<Result<Self, Fault>> {
        let encoding = response.headers().get(CONTENT_ENCODING)?;
        if !encoding.as_bytes().eq_ignore_ascii_case(b"zstd") {
            return None;
        }
        let headers = response.headers_mut();
        headers.remove(CONTENT_ENCODING);
        headers.remove(CONTENT_LENGTH);
        Some(Self::new().map_err(|error| bad(&error)))
    }

    fn new() -> io::Result<Self> {
        let mut decoder = Decoder::new()?;
        decoder.set_parameter(DParameter::WindowLogMax(WINDOW_LOG))?;
        Ok(Zstd { decoder, output: vec![0; PIECE].into(), whole: true })
    }

    /// The next decoded piece, while there is one; takes what it needs off the front of `input`.
    pub(super) fn next(&mut self, input: &mut &[u8]) -> Result<Option<&[u8]>, Fault> {
        let status = self.decoder.run_on_buffers(input, &mut self.output).map_err(|error| bad(&error))?;
        *input = &input[status.bytes_read..];
        if status.bytes_read == 0 && status.bytes_written == 0 {
            return Ok(None);
        }
        self.whole = status.remaining == 0;
        Ok(Some(&self.output[..status.bytes_written]))
    }

    /// There is no more input.
    pub(super) fn finish(&self) -> Result<(), Fault> {
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
