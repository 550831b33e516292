#[polypool::main]
const extern "C" fn main() {}
