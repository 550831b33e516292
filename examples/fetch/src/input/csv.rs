//! Tables: a header line that names the columns, then a row a record. Quoting is that of RFC 4180.
//!
//! `csv-core` does the parsing, into a buffer of our own: a quote that is never closed takes the rest of the file into
//! one field, and that must not fill the memory. Such a record is a bad row, and reading goes on at the next line.

use std::io::{self, BufRead, Read};
use std::str;

use csv_core::{ReadRecordResult, Reader, ReaderBuilder};

use super::lines::LONGEST_ROW;

const MOST_COLUMNS: usize = 10_000;

/// A file record by record.
#[derive(Debug)]
pub(super) struct Table<R> {
    input: io::Chain<io::Cursor<Vec<u8>>, R>,
    core: Reader,
    /// The fields of the last record, one behind the other, and where each ends.
    fields: Vec<u8>,
    ends: Vec<usize>,
    columns: usize,
    /// Where the last record started, from 1.
    line: u64,
}

impl<R: BufRead> Table<R> {
    pub(super) fn new(mut input: R, delimiter: u8) -> io::Result<Self> {
        // The parser takes a byte-order mark off as well, but takes one that comes alone for the end.
        let mut start = Vec::new();
        (&mut input).take(3).read_to_end(&mut start)?;
        if start == "\u{feff}".as_bytes() {
            start.clear();
        }
        let core = ReaderBuilder::new().delimiter(delimiter).build();
        let input = io::Cursor::new(start).chain(input);
        let mut table = Table { input, core, fields: Vec::new(), ends: Vec::new(), columns: 0, line: 1 };
        table.begin_at(1);
        Ok(table)
    }

    pub(super) fn line(&self) -> u64 {
        self.line
    }

    /// Reads the next record; whether there was one. The inner error is that of this record alone.
    pub(super) fn read(&mut self) -> io::Result<Option<Result<(), String>>> {
        self.skip_blank_lines()?;
        self.line = self.core.line();
        let (mut length, mut columns) = (0, 0);
        loop {
            let input = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                input => input?,
            };
            let (result, taken, written, ended) =
                self.core.read_record(input, &mut self.fields[length..], &mut self.ends[columns..]);
            self.input.consume(taken);
            (length, columns) = (length + written, columns + ended);
            match result {
                ReadRecordResult::InputEmpty => {}
                ReadRecordResult::OutputFull if length < LONGEST_ROW => self.fields.resize(length * 2, 0),
                ReadRecordResult::OutputEndsFull if columns < MOST_COLUMNS => self.ends.resize(columns * 2, 0),
                ReadRecordResult::OutputFull => {
                    self.give_up()?;
                    return Ok(Some(Err(format!(
                        "the row is longer than {LONGEST_ROW} bytes; is there a quote that is never closed?"
                    ))));
                }
                ReadRecordResult::OutputEndsFull => {
                    self.give_up()?;
                    return Ok(Some(Err(format!("the row has more than {MOST_COLUMNS} columns"))));
                }
                ReadRecordResult::Record => {
                    self.columns = columns;
                    return Ok(Some(Ok(())));
                }
                ReadRecordResult::End => return Ok(None),
            }
        }
    }

    /// A field of the last record without white space around it, if there is one.
    pub(super) fn field(&self, column: usize) -> Option<Result<&str, str::Utf8Error>> {
        let ends = &self.ends[..self.columns];
        let start = if column == 0 { 0 } else { *ends.get(column - 1)? };
        Some(str::from_utf8(&self.fields[start..*ends.get(column)?]).map(str::trim))
    }

    /// The fields of the last record, as far as they are text.
    pub(super) fn names(&self) -> impl Iterator<Item = &str> {
        (0..self.columns).map(|column| self.field(column).and_then(Result::ok).unwrap_or_default())
    }

    /// The parser skips them as well, but doesn't say that the record behind them starts later.
    fn skip_blank_lines(&mut self) -> io::Result<()> {
        loop {
            let input = match self.input.fill_buf() {
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                input => input?,
            };
            let blank = input.iter().take_while(|byte| matches!(byte, b'\r' | b'\n')).count();
            let lines = input[..blank].iter().filter(|&&byte| byte == b'\n').count();
            let more = blank > 0 && blank == input.len();
            self.input.consume(blank);
            self.core.set_line(self.core.line() + lines as u64);
            if !more {
                return Ok(());
            }
        }
    }

    /// Forgets the record under way and goes on at the next line.
    fn give_up(&mut self) -> io::Result<()> {
        self.begin_at(self.core.line() + 1);
        self.input.skip_until(b'\n').map(drop)
    }

    /// Makes the parser ready for a record, and past the point where it looks for a byte-order mark.
    fn begin_at(&mut self, line: u64) {
        self.core.reset();
        let _ = self.core.read_record(b"\n", &mut [0], &mut [0]); // A blank line is no record.
        self.core.set_line(line);
        (self.fields, self.ends, self.columns) = (vec![0; 1 << 10], vec![0; 16], 0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all(input: &[u8], capacity: usize) -> Vec<(u64, Result<Vec<String>, String>)> {
        let (mut table, mut all) =
            (Table::new(io::BufReader::with_capacity(capacity, input), b',').unwrap(), Vec::new());
        while let Some(record) = table.read().unwrap() {
            all.push((table.line(), record.map(|()| table.names().map(str::to_owned).collect())));
        }
        all
    }

    #[test]
    fn records_with_their_lines() {
        let input = b"\xef\xbb\xbfurl, id\r\n\r\n\"a,\"\"b\r\n\"\"\",1\n\nc\n\xff,d";
        for capacity in [1, 2, 3, 7, 1000] {
            let records: Vec<_> =
                all(input, capacity).into_iter().map(|(line, record)| (line, record.unwrap())).collect();
            let expected: [(u64, &[&str]); 4] =
                [(1, &["url", "id"]), (3, &["a,\"b\r\n\"", "1"]), (6, &["c"]), (7, &["", "d"])];
            assert_eq!(records.len(), 4, "{capacity}: {records:?}");
            for (record, expected) in records.iter().zip(expected) {
                assert_eq!((record.0, record.1.as_slice()), (expected.0, &expected.1.map_owned()[..]), "{capacity}");
            }
        }
    }

    trait MapOwned {
        fn map_owned(&self) -> Vec<String>;
    }

    impl MapOwned for &[&str] {
        fn map_owned(&self) -> Vec<String> {
            self.iter().map(|text| (*text).to_owned()).collect()
        }
    }

    #[test]
    fn a_quote_that_is_never_closed_costs_one_row_and_no_memory() {
        let mut input = b"url\n\"a\n".to_vec();
        input.extend("x\n".repeat(LONGEST_ROW).bytes());
        let records = all(&input, 1000);
        assert!(records[1].1.as_ref().unwrap_err().contains("quote"), "{:?}", records[1]);
        assert_eq!(records[1].0, 2);
        let (line, last) = records.last().unwrap();
        assert_eq!((*line, last), (LONGEST_ROW as u64 + 2, &Ok(vec!["x".into()])));
        assert!(records.len() > LONGEST_ROW / 2 - 10);
    }

    #[test]
    fn columns_are_counted() {
        let records = all(format!("{}\nb\n", ",".repeat(3 * MOST_COLUMNS)).as_bytes(), 1000);
        assert!(records[0].1.as_ref().unwrap_err().contains("columns"), "{:?}", records[0]);
        assert_eq!(records[1], (2, Ok(vec!["b".into()])));
    }
}
