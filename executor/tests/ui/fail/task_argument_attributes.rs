#[polypool::task]
fn resize(
    #[cfg(unix)] mode: u32,
    #[serde(skip)] cache: Vec<u8>,
    #[serde(default, with = "hex")] color: Vec<u8>,
    #[cold] width: u32,
) -> u32 {
    let _ = (mode, cache, color);
    width
}

fn main() {}
