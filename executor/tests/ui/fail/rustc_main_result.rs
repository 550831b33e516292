#[polypool::main]
async fn main() -> u64 {
    "seven"
}
