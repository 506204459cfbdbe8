//! Decimal numbers as people and spreadsheets write them, read without floats.
//!
//! A text is read with `.` or `,` as its decimal separator and with the others (`,` `.` space `'`) between groups of
//! three digits. It is taken only when all readings agree: `1,234.50`, `3,99` and `1 234` have one reading, `1.234`
//! may be a bit more than one or more than a thousand and is refused. A guess would be off by a factor of a thousand.

use schemas::command::MAX_NUMBER;

/// Why a text is not the number that was asked for. Shown to whoever made the file.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum NumberError {
    #[error("{given:?} is not a number")]
    Malformed { given: String },
    #[error("{given:?} is negative")]
    Negative { given: String },
    #[error("{given:?} may be {one} or {other}; write it without a thousands separator")]
    Ambiguous { given: String, one: String, other: String },
    #[error("{given:?} is not a whole number")]
    NotWhole { given: String },
    #[error("{given:?} has more than {decimals} decimals")]
    TooManyDecimals { given: String, decimals: u32 },
    #[error("{given:?} is larger than {MAX_NUMBER}")]
    TooLarge { given: String },
    #[error("{given:?} is in {sign}, not in {currency}; say which it is with --currency")]
    OtherCurrency { given: String, sign: String, currency: String },
}

/// What a cell says before it is read as a number.
#[derive(Debug, Clone, Copy)]
pub struct NumberText<'a> {
    pub text: &'a str,
    /// A JSON number: `.` can only be its decimal separator.
    pub is_json: bool,
}

/// Signs before or after a price, and the currencies that they stand for.
const SIGNS: [(&str, &[&str]); 7] = [
    ("€", &["EUR"]),
    ("$", &["USD", "AUD", "CAD", "NZD", "SGD", "HKD", "MXN"]),
    ("£", &["GBP"]),
    ("¥", &["JPY", "CNY"]),
    ("₹", &["INR"]),
    ("Rs.", &["INR", "PKR", "LKR", "NPR"]),
    ("Rs", &["INR", "PKR", "LKR", "NPR"]),
];

/// Decimals of a currency's minor unit (ISO 4217).
pub fn minor_decimals(currency: &str) -> u32 {
    match currency {
        "BIF" | "CLP" | "DJF" | "GNF" | "ISK" | "JPY" | "KMF" | "KRW" | "PYG" | "RWF" | "UGX" | "VND" | "VUV"
        | "XAF" | "XOF" | "XPF" => 0,
        "BHD" | "IQD" | "JOD" | "KWD" | "LYD" | "OMR" | "TND" => 3,
        _ => 2,
    }
}

/// A price in units of `10^-decimals`; a currency sign or code must fit `currency`.
pub fn price(number: NumberText<'_>, currency: &str, decimals: u32) -> Result<i64, NumberError> {
    let bare = without_currency(number.text, currency)?;
    scaled(NumberText { text: bare, ..number }, number.text, decimals)
}

/// A whole number; `12.0`, as data frames write it, is one.
pub fn whole(number: NumberText<'_>) -> Result<i64, NumberError> {
    scaled(number, number.text, 0)
}

fn without_currency<'a>(text: &'a str, currency: &str) -> Result<&'a str, NumberError> {
    let text = text.trim();
    let strip = |sign: &str| text.strip_prefix(sign).or_else(|| text.strip_suffix(sign)).map(str::trim);
    for (sign, currencies) in SIGNS {
        let Some(bare) = strip(sign) else { continue };
        if currencies.contains(&currency) {
            return Ok(bare);
        }
        return Err(NumberError::OtherCurrency {
            given: cut(text),
            sign: sign.to_owned(),
            currency: currency.to_owned(),
        });
    }
    if let Some(bare) = strip(currency) {
        return Ok(bare);
    }
    let code = [text.get(..3), text.len().checked_sub(3).and_then(|start| text.get(start..))];
    let is_code = |code: &&str| code.bytes().all(|byte| byte.is_ascii_uppercase());
    match code.into_iter().flatten().find(is_code) {
        Some(code) if text.len() > 3 => {
            Err(NumberError::OtherCurrency { given: cut(text), sign: code.to_owned(), currency: currency.to_owned() })
        }
        _ => Ok(text),
    }
}

fn scaled(number: NumberText<'_>, given: &str, decimals: u32) -> Result<i64, NumberError> {
    let given = cut(given);
    let text: String = number.text.trim().chars().map(plain_separator).collect();
    if text.strip_prefix(['-', '−']).is_some_and(|rest| !readings(rest.trim(), number.is_json).is_empty()) {
        return Err(NumberError::Negative { given });
    }
    let readings = readings(&text, number.is_json);
    let (integer, fraction) = match &readings[..] {
        [] => return Err(NumberError::Malformed { given }),
        [one] => one,
        [one, other, ..] => return Err(NumberError::Ambiguous { given, one: show(one), other: show(other) }),
    };
    if fraction.len() > decimals as usize {
        return Err(match decimals {
            0 => NumberError::NotWhole { given },
            _ => NumberError::TooManyDecimals { given, decimals },
        });
    }
    let digits = format!("{integer}{fraction:0<width$}", width = decimals as usize);
    match digits.parse::<i64>() {
        Ok(value) if value <= MAX_NUMBER => Ok(value),
        _ => Err(NumberError::TooLarge { given }),
    }
}

/// Integer and fraction digits, without the zeros that say nothing.
type Reading = (String, String);

/// All different numbers that a text may be.
fn readings(text: &str, is_json: bool) -> Vec<Reading> {
    let separators: &[(char, char)] = if is_json {
        &[('.', '.')]
    } else {
        &[('.', ','), ('.', ' '), ('.', '\''), (',', '.'), (',', ' '), (',', '\'')]
    };
    let mut found: Vec<Reading> = Vec::new();
    for (decimal, group) in separators {
        if let Some(reading) = reading(text, *decimal, *group)
            && !found.contains(&reading)
        {
            found.push(reading);
        }
    }
    found
}

fn reading(text: &str, decimal: char, group: char) -> Option<Reading> {
    let (integer, fraction) = match text.split_once(decimal) {
        Some((integer, fraction)) => (integer, Some(fraction)),
        None => (text, None),
    };
    if fraction.is_some_and(|fraction| !is_digits(fraction)) {
        return None;
    }
    if decimal != group && integer.contains(group) {
        let mut groups = integer.split(group);
        let first = groups.next()?;
        let is_grouped = is_digits(first) && first.len() <= 3 && !first.starts_with('0');
        if !is_grouped || !groups.all(|group| group.len() == 3 && is_digits(group)) {
            return None;
        }
    } else if !is_digits(integer) {
        return None;
    }
    let integer: String = integer.chars().filter(char::is_ascii_digit).collect();
    let integer = integer.trim_start_matches('0');
    let integer = if integer.is_empty() { "0" } else { integer };
    Some((integer.to_owned(), fraction.unwrap_or_default().trim_end_matches('0').to_owned()))
}

fn is_digits(text: &str) -> bool {
    !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit())
}

/// The spaces and apostrophes that typesetters put between groups, as plain ones.
fn plain_separator(character: char) -> char {
    match character {
        '\u{a0}' | '\u{2009}' | '\u{202f}' => ' ',
        '’' => '\'',
        other => other,
    }
}

fn show((integer, fraction): &Reading) -> String {
    if fraction.is_empty() { integer.clone() } else { format!("{integer}.{fraction}") }
}

fn cut(text: &str) -> String {
    text.chars().take(80).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(text: &str) -> NumberText<'_> {
        NumberText { text, is_json: false }
    }

    #[test]
    fn a_price_with_one_reading_is_taken() {
        for (given, minor) in [
            ("220", 22_000),
            ("220.0", 22_000),
            (" 3.99 ", 399),
            ("0.5", 50),
            ("0.500", 50),
            ("1234.500", 123_450),
            ("1,234.50", 123_450),
            ("1.234,50", 123_450),
            ("1 234,50", 123_450),
            ("1\u{202f}234.5", 123_450),
            ("1'234.50", 123_450),
            ("1,234,567", 123_456_700),
            ("3,99", 399),
            ("€ 3.99", 399),
            ("3,99 €", 399),
            ("EUR 3.99", 399),
            ("007.10", 710),
            ("2.5000", 250),
        ] {
            assert_eq!(price(text(given), "EUR", 2), Ok(minor), "{given:?}");
        }
        assert_eq!(price(text("₹ 1,02.00"), "INR", 2), Err(NumberError::Malformed { given: "₹ 1,02.00".to_owned() }));
        assert_eq!(price(text("Rs. 45"), "INR", 2), Ok(4_500));
        assert!(matches!(price(text("1.234"), "KWD", 3), Err(NumberError::Ambiguous { .. })));
    }

    #[test]
    fn a_price_that_may_be_two_numbers_is_refused_with_both() {
        for given in ["1.234", "1,234", "220.000"] {
            let error = price(text(given), "EUR", 2).unwrap_err();
            assert!(matches!(error, NumberError::Ambiguous { .. }), "{given:?}: {error}");
        }
        assert!(
            price(text("1,234"), "EUR", 2).unwrap_err().to_string().contains("1.234 or 1234")
                || price(text("1,234"), "EUR", 2).unwrap_err().to_string().contains("1234 or 1.234")
        );
    }

    #[test]
    fn a_json_number_has_a_decimal_point() {
        let json = |text| NumberText { text, is_json: true };
        assert_eq!(price(json("1234.5"), "EUR", 2), Ok(123_450));
        assert_eq!(whole(json("3.000")), Ok(3));
        assert!(matches!(price(json("1.234"), "EUR", 2), Err(NumberError::TooManyDecimals { .. })));
        assert!(matches!(price(json("1e3"), "EUR", 2), Err(NumberError::Malformed { .. })));
    }

    #[test]
    fn what_is_no_price_is_refused() {
        for given in
            ["", "abc", "N/A", "1.2.3,4", "1,23,456", "12,", ".", "--5", "5-", "1_000", "NaN", "inf", "١٢", "0x10", "€"]
        {
            assert!(matches!(price(text(given), "EUR", 2), Err(NumberError::Malformed { .. })), "{given:?}");
        }
        assert!(matches!(price(text("-3.99"), "EUR", 2), Err(NumberError::Negative { .. })));
        assert!(matches!(price(text("€ -3.99"), "EUR", 2), Err(NumberError::Negative { .. })));
        assert!(matches!(price(text("3.999"), "EUR", 2), Err(NumberError::Ambiguous { .. })));
        assert!(matches!(price(text("3.9999"), "EUR", 2), Err(NumberError::TooManyDecimals { .. })));
        assert!(matches!(price(text("99999999999999999999"), "EUR", 2), Err(NumberError::TooLarge { .. })));
        assert!(matches!(price(text("$3.99"), "EUR", 2), Err(NumberError::OtherCurrency { .. })));
        assert!(matches!(price(text("3.99 GBP"), "EUR", 2), Err(NumberError::OtherCurrency { .. })));
    }

    #[test]
    fn stock_is_whole() {
        assert_eq!(whole(text("12")), Ok(12));
        assert_eq!(whole(text("12.0")), Ok(12));
        assert!(matches!(whole(text("1.5")), Err(NumberError::NotWhole { .. })));
        assert!(matches!(whole(text("-1")), Err(NumberError::Negative { .. })));
        assert!(matches!(whole(text("lots")), Err(NumberError::Malformed { .. })));
    }

    proptest::proptest! {
        #[test]
        fn every_amount_is_read_back_as_it_is_written(minor in 0_i64..100_000_000_000) {
            let (major, cents) = (minor / 100, minor % 100);
            let grouped = {
                let digits = major.to_string();
                let groups: Vec<&str> = digits.as_bytes().rchunks(3).rev().map(|group| std::str::from_utf8(group).unwrap()).collect();
                groups.join(",")
            };
            proptest::prop_assert_eq!(price(text(&format!("{major}.{cents:02}")), "EUR", 2), Ok(minor));
            proptest::prop_assert_eq!(price(text(&format!("{grouped}.{cents:02}")), "EUR", 2), Ok(minor));
        }

        #[test]
        fn no_text_panics(given in "\\PC{0,20}") {
            let _ = price(text(&given), "EUR", 2);
            let _ = whole(text(&given));
        }
    }
}
