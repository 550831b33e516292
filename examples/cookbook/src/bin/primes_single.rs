//! Four numbers checked one after the other: the measure for `primes_submit`, `primes_map` and `primes_callback`.

const NUMBERS: [u64; 4] = [10_897_409, 20_292_113, 31_518_271, 40_003_027];

fn is_prime(n: u64) -> bool {
    n >= 2 && (2..).take_while(|d| d * d <= n).all(|d| !n.is_multiple_of(d))
}

fn main() {
    for n in NUMBERS {
        println!("{n} is prime: {}", is_prime(n));
    }
}
