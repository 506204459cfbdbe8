//! Makes hostile inputs of valid ones: bytes flipped, pieces cut out, doubled, swapped, spliced from other inputs,
//! numbers at their limits, deep nesting, and now and then a piece repeated until it is very long.
//!
//! Byte by byte, because mutation crates on stable work on Rust values, not on the bytes that an edge takes.

use rand::{Rng, RngExt, SeedableRng};
use rand_chacha::ChaCha8Rng;

/// Means something to most grammars here.
const WORDS: &[&str] = &[
    "\"",
    "\\",
    "\\u0000",
    "\\ud800",
    "\u{0}",
    "\u{feff}",
    "\u{202e}",
    "\u{1f4a9}",
    "\n",
    "\r\n",
    "\t",
    ",",
    ";",
    ":",
    "-",
    ".",
    "{",
    "}",
    "[",
    "]",
    "null",
    "true",
    "0",
    "-0",
    "-1",
    "1e999",
    "1e-999",
    "0.1",
    "127",
    "128",
    "65536",
    "2147483648",
    "4294967295",
    "9223372036854775807",
    "9223372036854775808",
    "-9223372036854775809",
    "18446744073709551616",
    "99999999999999999999999999999999",
    "NaN",
    "%00",
    "%FF",
    "%2e%2e%2f",
    "../",
    "é",
    "\u{0301}",
    "ß",
    "İ",
    "١٢",
];
/// Deep nesting, by what opens it.
const OPENERS: &[&str] = &["[", "{\"a\":", "(", "<", "[[", "{\"data\":{", "\"", "%"];
/// One input in so many is made long.
const LONG_ONE_IN: u32 = 500;

/// The generator of one input: the same for the same seed, target and number.
pub fn random(seed: u64, target: &str, number: u64) -> ChaCha8Rng {
    let name = target
        .bytes()
        .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3));
    let mut random = ChaCha8Rng::seed_from_u64(seed ^ name);
    random.set_stream(number);
    random
}

/// One of several.
pub fn one_of<'a, T: ?Sized>(random: &mut ChaCha8Rng, all: &[&'a T]) -> &'a T {
    all[random.random_range(0..all.len())]
}

/// A number near a limit as often as not.
pub fn number(random: &mut ChaCha8Rng) -> i64 {
    match random.random_range(0..6_u32) {
        0 => random.random_range(-2..=2),
        1 => i64::MAX - random.random_range(0..3),
        2 => i64::MIN + random.random_range(0..3),
        3 => 1_i64 << random.random_range(0..63),
        _ => random.random(),
    }
}

/// A text of any characters, mostly short.
pub fn text(random: &mut ChaCha8Rng) -> String {
    let length =
        if random.random_range(0..50_u32) == 0 { random.random_range(0..12_000) } else { random.random_range(0..12) };
    let mut text = String::new();
    for _ in 0..length {
        match random.random_range(0..8_u32) {
            0 => text.push_str(one_of(random, WORDS)),
            1 => text.push(char::from_u32(random.random_range(0..0x11_0000)).unwrap_or('\u{fffd}')),
            _ => text.push(char::from(random.random_range(b' '..=b'~'))),
        }
    }
    text
}

/// A valid input, made hostile.
pub fn mutate(random: &mut ChaCha8Rng, corpus: &[Vec<u8>], words: &[&str], largest: usize) -> Vec<u8> {
    let mut input = match corpus {
        [] => Vec::new(),
        _ => corpus[random.random_range(0..corpus.len())].clone(),
    };
    let rounds = match random.random_range(0..10_u32) {
        0 => 0,
        1..=5 => 1,
        6..=8 => random.random_range(2..6),
        _ => random.random_range(6..30),
    };
    for _ in 0..rounds {
        mutate_once(random, &mut input, corpus, words);
    }
    if random.random_range(0..LONG_ONE_IN) == 0 {
        lengthen(random, &mut input, largest);
    }
    input.truncate(largest);
    input
}

fn mutate_once(random: &mut ChaCha8Rng, input: &mut Vec<u8>, corpus: &[Vec<u8>], words: &[&str]) {
    let at = random.random_range(0..=input.len());
    let piece = piece_of(random, input.len());
    match random.random_range(0..12_u32) {
        0 if at < input.len() => input[at] ^= 1 << random.random_range(0..8),
        1 if at < input.len() => input[at] = random.random(),
        2 => input.insert(at, random.random()),
        3 => input.truncate(at),
        4 => drop(input.drain(piece)),
        5 => {
            let doubled = input[piece].to_vec();
            insert(input, at, &doubled);
        }
        6 | 7 => insert(input, at, one_of(random, WORDS).as_bytes()),
        8 | 9 if !words.is_empty() => {
            let word = one_of(random, words).as_bytes();
            if random.random() {
                drop(input.drain(piece.clone()));
            }
            insert(input, at.min(input.len()), word);
        }
        10 if !corpus.is_empty() => {
            let other = &corpus[random.random_range(0..corpus.len())];
            let taken = piece_of(random, other.len());
            insert(input, at, &other[taken]);
        }
        // A number becomes another one.
        _ => {
            let digits: Vec<usize> = (0..input.len()).filter(|&at| input[at].is_ascii_digit()).collect();
            if let [_, ..] = digits[..] {
                let at = digits[random.random_range(0..digits.len())];
                let written = number(random).to_string();
                input.remove(at);
                insert(input, at, written.as_bytes());
            } else {
                random.fill_bytes(input);
            }
        }
    }
}

fn lengthen(random: &mut ChaCha8Rng, input: &mut Vec<u8>, largest: usize) {
    let at = random.random_range(0..=input.len());
    let room = random.random_range(0..=largest.saturating_sub(input.len()));
    let piece: Vec<u8> = match random.random_range(0..3_u32) {
        0 => one_of(random, OPENERS).as_bytes().to_vec(),
        1 => one_of(random, WORDS).as_bytes().to_vec(),
        _ => input[piece_of(random, input.len())].to_vec(),
    };
    if !piece.is_empty() {
        let long: Vec<u8> = piece.iter().copied().cycle().take(room).collect();
        insert(input, at, &long);
    }
}

fn piece_of(random: &mut ChaCha8Rng, length: usize) -> std::ops::Range<usize> {
    let start = random.random_range(0..=length);
    let most = (length - start).min(if random.random_range(0..8_u32) == 0 { usize::MAX } else { 16 });
    start..start + random.random_range(0..=most)
}

fn insert(input: &mut Vec<u8>, at: usize, piece: &[u8]) {
    drop(input.splice(at..at, piece.iter().copied()));
}
