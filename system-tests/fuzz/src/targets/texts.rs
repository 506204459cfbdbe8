//! Short texts that callers send: position tokens and ids.

use rand::RngExt;
use rand_chacha::ChaCha8Rng;
use schemas::{Context, PositionToken, Sku, StorePosition};

use crate::target::{Target, reads_back, refusal};

pub struct Token;

impl Target for Token {
    fn name(&self) -> &'static str {
        "position-token"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        let mut token = PositionToken::default();
        let mut corpus = vec![token.to_string().into_bytes()];
        for context in Context::ALL {
            token.advance(context, 7, StorePosition { xid: 812, position: 4021 });
            corpus.push(token.to_string().into_bytes());
        }
        corpus
    }

    fn words(&self) -> &'static [&'static str] {
        &["inventory", "catalogue", "pricing", "platform", "-", ",", ".", "inventory-7-812.4021,", " "]
    }

    fn generate(&self, random: &mut ChaCha8Rng) -> Option<Vec<u8>> {
        let parts = random.random_range(0..5_000);
        let part = |at| format!("inventory-{}-{}.{}", at % 4_100, at, u64::MAX - at);
        // Most are short: only the bound on partitions needs long ones.
        let parts = if random.random_range(0..100_u32) == 0 { parts } else { parts % 4 };
        Some((0..parts).map(part).collect::<Vec<_>>().join(",").into_bytes())
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        let text = String::from_utf8_lossy(input);
        if let Ok(position) = text.parse::<StorePosition>() {
            reads_back(&position, position.to_string().parse())?;
        }
        match text.parse::<PositionToken>() {
            Ok(token) => {
                if token.iter().count() > schemas::position::MAX_TOKEN_PARTITIONS {
                    return Err("a token names more partitions than it may".to_owned());
                }
                reads_back(&token, token.to_string().parse())
            }
            Err(error) => refusal(error, &["position"]),
        }
    }
}

pub struct Id;

impl Target for Id {
    fn name(&self) -> &'static str {
        "id"
    }

    fn corpus(&self) -> Vec<Vec<u8>> {
        vec![b"TEA".to_vec(), b"A-1.b_2".to_vec(), vec![b'x'; 64]]
    }

    fn feed(&self, input: &[u8]) -> Result<(), String> {
        match Sku::new(String::from_utf8_lossy(input)) {
            Ok(sku) if sku.as_str().len() > schemas::id::MAX_ID_LENGTH => Err("an id is too long".to_owned()),
            Ok(sku) => reads_back(&sku, sku.to_string().parse()),
            Err(error) if error.to_string().len() > 1_000 => Err("the refusal repeats a long text".to_owned()),
            Err(error) => refusal(error, &["sku"]),
        }
    }
}
