#[polypool::task]
fn inferred(list: Vec<_>) -> _ {
    list.len()
}

#[polypool::task]
fn forever() -> ! {
    loop {}
}

fn main() {}
