use super::*;

const COLUMNS: [&str; 8] = ["sku", "name", "brand", "c1", "c2", "description", "price", "stock"];

fn settings(sku_from: &[&str]) -> RowSettings {
    let columns: Vec<String> = COLUMNS.iter().map(|name| (*name).to_owned()).collect();
    let map = "sku=sku,name=name,brand=brand,category=c1/c2,description=description,price=price,stock=stock".to_owned();
    let sku_from: Vec<String> = sku_from.iter().map(|part| (*part).to_owned()).collect();
    RowSettings {
        map: FieldMap::find(&[map], &sku_from, &columns).unwrap(),
        currency: "EUR".to_owned(),
        price_decimals: 2,
        region: RegionId::new("eu").unwrap(),
        warehouse: WarehouseId::new("eu-1").unwrap(),
        delivery: String::new(),
    }
}

fn cells(values: [&str; 8]) -> Cells {
    Cells::Row(values.iter().map(|value| (*value).to_owned()).collect())
}

fn read(values: [&str; 8]) -> Result<ProductRow, String> {
    ProductRow::read(&cells(values), &settings(&[]))
}

const MILK: [&str; 8] = ["M-1", " Milk ", "Farm", "Dairy", "Fresh", "Whole milk", "1.19", "12"];

fn milk(index: usize, value: &'static str) -> [&'static str; 8] {
    let mut row = MILK;
    row[index] = value;
    row
}

#[test]
fn a_full_row_registers_prices_and_counts() {
    let row = read(MILK).unwrap();
    assert_eq!(row.product.name, "Milk");
    assert_eq!(row.product.category_path, ["Dairy", "Fresh"]);
    let commands = row.commands("");
    assert_eq!(
        commands.iter().map(|command| command.kind).collect::<Vec<_>>(),
        [PreparedKind::Register, PreparedKind::Price, PreparedKind::Count]
    );
    for prepared in &commands {
        let envelope = CommandEnvelope::from_json(prepared.json.as_bytes(), None, 0).unwrap();
        assert_eq!((envelope.id, envelope.actor.as_deref()), (prepared.id, Some("import")));
    }
    assert!(commands[1].json.contains(r#""amount_minor":119"#), "{}", commands[1].json);
    assert!(commands[2].json.contains(r#""counted":12"#) && commands[2].json.contains(r#""region":"eu""#));
}

#[test]
fn blank_cells_leave_their_part_out() {
    let row = read(["M-1", "Milk", "", "", "Fresh", " ", "", ""]).unwrap();
    assert_eq!((row.price.clone(), row.count.clone(), row.product.brand.clone()), (None, None, None));
    assert_eq!(row.product.category_path, ["Fresh"]);
    assert_eq!(row.commands("").len(), 1);
    let bare = read(["M-1", "Milk", "", "", "", "", "", ""]).unwrap().revise("");
    let Command::ReviseProduct(revise) = CommandEnvelope::from_json(bare.json.as_bytes(), None, 0).unwrap().command
    else {
        panic!("{}", bare.json)
    };
    assert_eq!(
        (revise.brand, revise.category_path, revise.description),
        (None, None, None),
        "a blank cell erases nothing"
    );
}

#[test]
fn bad_cells_are_named_with_their_value() {
    let long: &'static str = Box::leak("x".repeat(501).into_boxed_str());
    for (index, value, says) in [
        (0, "", "SKU is blank"),
        (0, "a b", "\"a b\""),
        (1, " \u{a0}", "name is blank"),
        (1, long, "501 characters"),
        (1, "a\u{0}b", "control character"),
        (6, "abc", "price \"abc\""),
        (6, "-1", "negative"),
        (6, "1.999", "may be"),
        (6, "1.9999", "more than 2 decimals"),
        (7, "1.5", "stock \"1.5\""),
        (7, "-3", "negative"),
        (7, "9999999999999", "larger"),
    ] {
        let error = read(milk(index, value)).unwrap_err();
        assert!(error.contains(says), "{value:?}: {error}");
    }
}

#[test]
fn ids_come_from_the_content_and_from_nothing_else() {
    let ids = |row: [&str; 8], delivery: &str| -> Vec<Uuid> {
        read(row).unwrap().commands(delivery).iter().map(|command| command.id).collect()
    };
    let first = ids(MILK, "");
    assert_eq!(first, ids(milk(1, "Milk"), ""), "spaces around a text are no content");
    let repriced = ids(milk(6, "1.20"), "");
    assert_eq!((first[0], first[2]), (repriced[0], repriced[2]));
    assert_ne!(first[1], repriced[1]);
    assert_ne!(first[0], ids(milk(0, "M-2"), "")[0]);
    assert_ne!(first, ids(MILK, "second"));
    // Values do not run into each other.
    let one = ids(["A", "x", "", "ab", "c", "", "", ""], "");
    let other = ids(["A", "x", "", "a", "bc", "", "", ""], "");
    assert_ne!(one, other);
    // Golden: a change here makes every file imported before take effect again.
    assert_eq!(first[0].to_string(), "cbcb49a5-80b0-51bd-bd9a-9f3a91181abb");
    assert_eq!(first[2].to_string(), "de34d71e-5972-579f-9543-108492d3cc97");
}

#[test]
fn the_content_tells_rows_apart() {
    let content = |row| read(row).unwrap().content();
    assert_eq!(content(MILK), content(milk(1, "Milk\t")));
    for (index, value) in [(0, "M-2"), (1, "Milk 2"), (2, ""), (4, "x"), (5, "y"), (6, "1.18"), (7, "")] {
        assert_ne!(content(MILK), content(milk(index, value)), "{index}");
    }
}

#[test]
fn a_missing_sku_is_derived_and_stays_the_same() {
    let derive = |row: [&str; 8], from: &[&str]| {
        ProductRow::read(&cells(row), &settings(from)).map(|row| row.product.sku.to_string())
    };
    let sku = derive(["", "Amul Ghee, 500 g!", "Amul", "", "", "", "", ""], &["name", "brand"]).unwrap();
    assert!(sku.starts_with("amul-ghee-500-g-amul-"), "{sku}");
    assert_eq!(
        Ok(sku.clone()),
        derive(["", " Amul  Ghee, 500 g! ", "Amul", "Oils", "", "", "9", ""], &["name", "brand"])
    );
    assert_ne!(Ok(sku), derive(["", "Amul Ghee, 500 g?", "Amul", "", "", "", "", ""], &["name", "brand"]));
    assert_eq!(derive(MILK, &["name"]), Ok("M-1".to_owned()), "a row's own SKU goes before");
    let foreign = derive(["", "牛乳", "", "", "", "", "", ""], &["name"]).unwrap();
    assert_eq!(foreign.len(), SKU_HASH_DIGITS);
    let long = derive(["", &"many words ".repeat(20), "", "", "", "", "", ""], &["name"]).unwrap();
    assert!(long.len() <= 64, "{long}");
    assert!(derive(["", "x", "", "", "", "", "", ""], &["brand"]).unwrap_err().contains("blank"));
}

#[test]
fn a_row_that_makes_too_large_a_command_is_refused() {
    // Four bytes a character, twice as many when the line ends are written in JSON.
    let description: &'static str = Box::leak("\u{1f9c0}\n".repeat(5_000).into_boxed_str());
    assert!(read(milk(5, description)).is_ok());
    let path: Vec<String> = (0..32).map(|_| format!("\"{}\"", "\u{1f9c0}".repeat(500))).collect();
    let json = format!(
        r#"{{"sku":"A","name":"{}","category":[{}],"brand":"{}"}}"#,
        "x".repeat(500),
        path.join(","),
        "\u{1f9c0}".repeat(500)
    );
    let cells = Cells::Object(serde_json::from_str(&json).unwrap());
    let columns: Vec<String> = ["sku", "name", "category", "brand"].map(str::to_owned).to_vec();
    let map = FieldMap::find(&[], &[], &columns).unwrap();
    let error = ProductRow::read(&cells, &RowSettings { map, ..settings(&[]) }).map(|_| "was taken").unwrap_err();
    assert!(error.contains("bytes"), "{error}");
}
