//! Lines of bounded length, and the format that has a URL on each: blank ones and those that start with `#` are none.

use std::io::{self, BufRead, Read};

/// What a row may take, whatever its format: it has to be in memory as a whole.
pub(super) const LONGEST_ROW: usize = 1 << 20;

/// A file line by line. A line that is too long is passed over without being kept.
#[derive(Debug)]
pub(super) struct Lines<R> {
    input: R,
    line: u64,
    buffer: Vec<u8>,
}

/// A line without its end and the white space around it.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Line<'a> {
    Text(&'a str),
    /// Why it can't be used.
    Bad(String),
}

impl<R: BufRead> Lines<R> {
    pub(super) fn new(input: R) -> Self {
        Lines { input, line: 0, buffer: Vec::new() }
    }

    /// The number of the line that came last, from 1.
    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// The next line with something on it.
    pub(super) fn next(&mut self) -> io::Result<Option<Line<'_>>> {
        let blank = |text: &[u8]| text.iter().all(u8::is_ascii_whitespace);
        loop {
            self.buffer.clear();
            let most = LONGEST_ROW as u64 + 1;
            if (&mut self.input).take(most).read_until(b'\n', &mut self.buffer)? == 0 {
                return Ok(None);
            }
            self.line += 1;
            if self.buffer.len() > LONGEST_ROW && !self.buffer.ends_with(b"\n") {
                self.buffer = Vec::new();
                self.input.skip_until(b'\n')?;
                return Ok(Some(Line::Bad(format!("the line is longer than {LONGEST_ROW} bytes"))));
            }
            if self.line == 1 && self.buffer.starts_with("\u{feff}".as_bytes()) {
                self.buffer.drain(..3);
            }
            if !blank(&self.buffer) {
                break;
            }
        }
        Ok(Some(match std::str::from_utf8(&self.buffer) {
            Ok(text) if text.contains('\0') => Line::Bad("the line has a NUL character".into()),
            Ok(text) => Line::Text(text.trim()),
            Err(error) => Line::Bad(format!("byte {} of the line is not UTF-8", error.valid_up_to() + 1)),
        }))
    }
}

/// Whether a line of a list of URLs is no URL but a comment.
pub(super) fn is_comment(line: &str) -> bool {
    line.starts_with('#')
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What `next` gave, and on which lines.
    fn all(input: &[u8]) -> Vec<(u64, Result<String, String>)> {
        let (mut lines, mut all) = (Lines::new(input), Vec::new());
        while let Some(line) = lines.next().unwrap() {
            let line = match line {
                Line::Text(text) => Ok(text.to_owned()),
                Line::Bad(why) => Err(why),
            };
            all.push((lines.line(), line));
        }
        all
    }

    #[test]
    fn line_ends_and_byte_order_marks_are_taken_off() {
        let expected = [(1, Ok("a".to_owned())), (4, Ok("b c".to_owned())), (5, Ok("d".to_owned()))];
        assert_eq!(all(b"\xef\xbb\xbfa\r\n\r\n \t\n  b c \nd"), expected);
        assert_eq!(all(b""), []);
        assert_eq!(all(b"\xef\xbb\xbf"), []);
    }

    #[test]
    fn a_bad_line_does_not_hide_the_next() {
        let lines = all(b"a\n\xff\nb\0\nc\n");
        assert_eq!((&lines[0].1, &lines[3].1), (&Ok("a".into()), &Ok("c".into())));
        assert!(lines[1].1.as_ref().unwrap_err().contains("byte 1"), "{lines:?}");
        assert!(lines[2].1.as_ref().unwrap_err().contains("NUL"), "{lines:?}");
    }

    #[test]
    fn a_line_may_be_so_long_and_no_longer() {
        let longest = "x".repeat(LONGEST_ROW);
        let lines = all(format!("{longest}\n{longest}x\nlast").as_bytes());
        assert_eq!(lines[0].1.as_ref().unwrap().len(), LONGEST_ROW);
        assert!(lines[1].1.as_ref().unwrap_err().contains("longer than"));
        assert_eq!(lines[2], (3, Ok("last".into())));
        // The longest one that has no end, and one that is too long and has none.
        assert!(all(longest.as_bytes())[0].1.is_ok());
        assert!(all(format!("{longest}x").as_bytes())[0].1.is_err());
    }

    #[test]
    fn an_endless_line_is_not_kept() {
        let mut lines = Lines::new(io::BufReader::new(io::repeat(b'x').take(50 << 20)));
        assert!(matches!(lines.next().unwrap(), Some(Line::Bad(_))));
        assert!(lines.buffer.capacity() <= 2 * LONGEST_ROW);
        assert_eq!(lines.next().unwrap(), None);
    }
}
