use std::borrow::Cow;
use std::ffi::OsStr;
use std::path::Path;

struct Image;

#[polypool::task]
fn directly(text: &str, numbers: &[u64], path: &Path, name: &OsStr, image: &Image, changed: &mut Image) {
    let _ = (text, numbers, path, name, image, changed);
}

#[polypool::task]
fn inside(maybe: Option<&str>, pairs: Vec<(&str, &[u8])>, list: &[&str], shape: &dyn ToString) {
    let _ = (maybe, pairs, list, shape);
}

#[polypool::task]
fn in_the_result(n: usize) -> Option<&'static str> {
    ["zero", "one"].get(n).copied()
}

#[polypool::task]
async fn lifetime(text: Cow<'_, str>) -> usize {
    text.len()
}

fn main() {}
