#[polypool::task]
unsafe fn dangerous(n: u8) -> u8 {
    n
}

#[polypool::task]
extern "C" fn foreign(n: u8) -> u8 {
    n
}

#[polypool::task]
const fn constant(n: u8) -> u8 {
    n
}

#[polypool::task]
unsafe extern "C" fn variadic(n: u8, more: ...) -> u8 {
    n
}

fn main() {}
