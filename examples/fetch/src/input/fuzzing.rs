//! What the fuzz targets call: bytes that nobody should write, in each format. They check what holds for every input:
//! no panic, rows numbered from 1 without a gap, one for each line with something on it.

use std::sync::Arc;

use super::lines::Lines;
use super::template::Template;
use super::{Current, Ids, Reader, Rows};
use crate::request::{Payload, Row};
use crate::settings::{InputFormat, InputSettings, RequestDefaults};

/// A URL a line, templates left alone.
pub fn lines(data: &[u8]) {
    let expected = data.split(|&byte| byte == b'\n').enumerate().filter(|(index, line)| {
        let line = if *index == 0 { line.strip_prefix(b"\xef\xbb\xbf").unwrap_or(line) } else { line };
        let text = std::str::from_utf8(line).map(str::trim);
        !line.iter().all(u8::is_ascii_whitespace)
            && !text.is_ok_and(|text| text.starts_with('#') && !text.contains('\0'))
    });
    assert_eq!(rows(InputFormat::Lines, data).len(), expected.count());
}

/// A table.
pub fn csv(data: &[u8]) {
    for format in [InputFormat::Csv, InputFormat::Tsv] {
        rows(format, data);
    }
}

/// A JSON object a line.
pub fn jsonl(data: &[u8]) {
    let mut lines = Lines::new(data);
    let mut expected = 0;
    while lines.next().is_ok_and(|line| line.is_some()) {
        expected += 1;
    }
    assert_eq!(rows(InputFormat::Jsonl, data).len(), expected);
}

/// A URL that stands for several: as many as it says, each of them a text.
pub fn template(data: &[u8]) {
    const ENOUGH: u64 = 1_000;
    let Ok(text) = std::str::from_utf8(data) else { return };
    if let Ok(Some(template)) = Template::parse(text) {
        let count = template.total();
        assert!(count > 0);
        assert_eq!(template.take(ENOUGH as usize).count() as u64, count.min(ENOUGH));
    }
}

/// All rows, checked.
fn rows(format: InputFormat, data: &[u8]) -> Vec<Row> {
    let settings = settings(format);
    let input = Box::new(std::io::Cursor::new(data.to_vec()));
    let Ok(reader) = Reader::new(input, format, &settings, "input") else { return Vec::new() };
    let current = Current { name: "input".into(), directory: "/dev/null".into(), reader, template: None };
    let rows = Rows {
        settings: Arc::new(settings),
        sources: Vec::new(),
        current: Some(current),
        number: 0,
        seen: None,
        ids: Some(Ids::default()),
        duplicates: Arc::default(),
    };
    let rows: Vec<Row> =
        rows.map(|row| row.unwrap_or_else(|error| unreachable!("memory can be read: {error}"))).collect();
    for (row, number) in rows.iter().zip(1..) {
        assert_eq!(row.number, number);
        match &row.content {
            Ok(request) => assert!(request.url.has_host() && request.url.scheme().starts_with("http")),
            Err(bad) => assert!(bad.message.starts_with("input:") && bad.url.chars().count() <= 201, "{bad:?}"),
        }
    }
    rows
}

pub(super) fn settings(format: InputFormat) -> InputSettings {
    let (method, headers, body) = (reqwest::Method::GET, reqwest::header::HeaderMap::new(), Payload::None);
    InputSettings {
        urls: Vec::new(),
        files: Vec::new(),
        format,
        column: None,
        templates: false,
        strict: false,
        dedupe: false,
        own_ids: true,
        defaults: RequestDefaults { method, headers, query: None, body },
        base: None,
        file_bodies: true,
    }
}
