#[polypool::task]
fn addresses(data: *const u8, more: Vec<*mut u8>) -> *const u8 {
    let _ = more;
    data
}

fn main() {}
