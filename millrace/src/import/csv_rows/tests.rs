use super::*;

fn rows(text: &[u8]) -> Vec<(u64, Result<Vec<String>, String>)> {
    let lines = Lines::new(Box::new(io::Cursor::new(text.to_vec())));
    let mut rows = CsvRows::new(lines, b',').unwrap();
    let mut read = Vec::new();
    while let Some(record) = rows.next_record().unwrap() {
        let cells = record.cells.map(|cells| match cells {
            Cells::Row(values) => values,
            Cells::Object(_) => unreachable!(),
        });
        read.push((record.line, cells));
    }
    read
}

fn good(rows: &[(u64, Result<Vec<String>, String>)]) -> Vec<(u64, String)> {
    rows.iter().filter_map(|(line, cells)| cells.as_ref().ok().map(|cells| (*line, cells.join("|")))).collect()
}

fn bad(rows: &[(u64, Result<Vec<String>, String>)]) -> Vec<u64> {
    rows.iter().filter(|(_, cells)| cells.is_err()).map(|(line, _)| *line).collect()
}

#[test]
fn quotes_commas_and_line_ends_are_read_as_spreadsheets_write_them() {
    let read = rows(b"a,b,c\r\n1,\"x, \"\"y\"\"\",3\r\n\r\n2,,\r\n3,12\" pizza,\"z\"");
    assert_eq!(good(&read), [(2, "1|x, \"y\"|3".into()), (4, "2||".into()), (5, "3|12\" pizza|z".into())]);
    assert_eq!(bad(&read), Vec::<u64>::new());
}

#[test]
fn a_quoted_field_may_span_lines() {
    let read = rows(b"a,b,c,d\n1,\"two\nlines, really\n\nor four\",3,4\n5,6,7,8\n");
    assert_eq!(good(&read), [(2, "1|two\nlines, really\n\nor four|3|4".into()), (6, "5|6|7|8".into())]);
    let read = rows(b"a,b,c,d\n\"begins\nends\",2,3,4\n");
    assert_eq!(good(&read), [(2, "begins\nends|2|3|4".into())]);
}

#[test]
fn an_open_quote_costs_its_own_row_only() {
    for text in [
        &b"a,b,c,d\n1,\"open,3,4\n5,6,7,8\n9,10,11,12\n"[..],
        b"a,b,c,d\n1,\"open,3,4\n5,\"6\",7,8\n9,10,11,12\n",
        b"a,b,c,d\n1,\"open,3,4\n5,\"6, 6\",7,8\n9,10,11,12\n",
        b"a,b,c,d\n1,\"open,3,4\n5,6,7,8\n9,10 inch\",11,12\n",
    ] {
        let read = rows(text);
        assert_eq!(bad(&read), [2], "{}", String::from_utf8_lossy(text));
        assert_eq!(good(&read).iter().map(|(line, _)| *line).collect::<Vec<_>>(), [3, 4]);
    }
    // With three columns a text line may look like a row, but garbage behind a quote still tells.
    let read = rows(b"a,b,c\n1,\"open,3\n2,\"good\",4\n5,6,7\n");
    assert_eq!((bad(&read), good(&read).len()), (vec![2], 2));
}

#[test]
fn an_open_quote_in_the_last_line_or_before_a_long_rest_is_refused_alone() {
    assert_eq!(bad(&rows(b"a,b\n1,2\n3,\"4")), [3]);
    let mut text = b"a,b\n1,\"open\n".to_vec();
    for number in 0..1_000 {
        text.extend_from_slice(format!("{number},x\n").as_bytes());
    }
    let read = rows(&text);
    assert_eq!((bad(&read), good(&read).len()), (vec![2], 1_000));
}

/// The splitter as a whole: lines read one after the other give what the joined text gives.
#[test]
fn a_record_goes_on_where_its_last_line_ended() {
    let Split::Open(open) = split(b"1,\"two", b',') else { panic!("closed") };
    let Split::Open(open) = open.go_on(b"\"\"three\"\"", b',') else { panic!("closed") };
    let Split::Open(open) = open.go_on(b"four\" ,\"five", b',') else { panic!("closed") };
    assert_eq!(open.fields, [b"1".to_vec(), b"two\n\"three\"\nfour".to_vec()]);
    assert_eq!(
        open.go_on(b"\",", b','),
        Split::Fields(vec![b"1".to_vec(), b"two\n\"three\"\nfour".to_vec(), b"five\n".to_vec(), Vec::new()])
    );
}

/// What one reading costs is counted in bytes given to the splitter: a clock would blame the machine.
#[test]
fn hostile_quotes_cost_a_bounded_number_of_readings() {
    let padding = "y".repeat(5_000);
    let header: Vec<String> = (0..400).map(|number| format!("c{number}")).collect();
    for line in [
        format!("x,\"\"\" {padding}"),
        format!("x,\"\"\" {}", " ".repeat(5_000)),
        format!("x,\"{padding}"),
        format!("x\",{padding},\"\"\"z"),
        format!("x\",\"{padding}"),
        format!("\"{padding}\"\""),
    ] {
        let text = format!("{}\n{}", header.join(","), format!("{line}\n").repeat(300));
        SPLIT_BYTES.set(0);
        let read = rows(text.as_bytes());
        assert_eq!(good(&read).len(), 0);
        let readings = SPLIT_BYTES.get() / text.len();
        assert!(readings <= MAX_REOPENED + 3, "{readings} readings of {:?}…", &line[..12]);
    }
}

#[test]
fn a_record_may_have_several_fields_of_several_lines() {
    let read = rows(b"a,b,c,d\n\"1\n1\",\"2\n2\",\"3\n3\",4\n5,6,7,8\n");
    assert_eq!(good(&read), [(2, "1\n1|2\n2|3\n3|4".into()), (6, "5|6|7|8".into())]);
}

#[test]
fn a_good_row_keeps_no_more_text_than_a_reject_shows() {
    let text = format!("a,b\n1,{}\n2,\"{}\n{}\"\n", "é".repeat(100_000), "x".repeat(9_000), "y".repeat(9_000));
    let mut rows = CsvRows::new(Lines::new(Box::new(io::Cursor::new(text.into_bytes()))), b',').unwrap();
    let record = rows.next_record().unwrap().unwrap();
    assert_eq!(record.text.chars().count(), 2_000);
    assert!(record.text.capacity() <= 4 * SHOWN_BYTES && record.cells.is_ok());
    let record = rows.next_record().unwrap().unwrap();
    assert!(record.text.starts_with("2,\"xxx") && record.text.chars().count() == 2_000 && record.cells.is_ok());
}

#[test]
fn ragged_rows_and_text_behind_quotes_are_refused_with_their_line() {
    let read = rows(b"a,b,c\n1,2\n1,2,3,4\n\"x\"y,2,3\n1,2,3\n");
    assert_eq!(bad(&read), [2, 3, 4]);
    assert_eq!(good(&read), [(5, "1|2|3".into())]);
    assert!(read[0].1.as_ref().unwrap_err().contains("2 fields, the header has 3"));
}

#[test]
fn bytes_that_are_no_text_cost_their_row() {
    let read = rows(b"name,price\nCr\xe8me,3\nCr\xc3\xa8me,4\n");
    assert_eq!(bad(&read), [2]);
    assert!(read[0].1.as_ref().unwrap_err().contains("0xE8"), "{:?}", read[0]);
    assert_eq!(good(&read), [(3, "Crème|4".into())]);
}

#[test]
fn a_file_without_a_header_is_told_so() {
    let new = |text: &[u8]| CsvRows::new(Lines::new(Box::new(io::Cursor::new(text.to_vec()))), b',').err();
    assert!(matches!(new(b""), Some(HeaderError::Missing)));
    assert!(matches!(new(b"\n\n"), Some(HeaderError::Missing)));
    assert!(matches!(new(b"a,\"b\n1,2\n"), Some(HeaderError::Quoting { line: 1 })));
    assert!(matches!(new(b"pr\xe9nom\n1\n"), Some(HeaderError::Encoding { line: 1 })));
}

proptest::proptest! {
    /// What the csv crate writes is read back, whatever is in the cells.
    #[test]
    fn what_a_writer_quotes_is_read_back(cells in proptest::collection::vec(proptest::collection::vec("[ a-c,\"\n]{0,6}", 5), 1..20)) {
        // A text line that looks like a row inside a quoted field is what the reader refuses on purpose.
        let looks_like_rows = cells.iter().flatten().any(|cell| cell.lines().any(|line| line.matches(',').count() >= 4));
        proptest::prop_assume!(!looks_like_rows);
        let mut writer = csv::WriterBuilder::new().quote_style(csv::QuoteStyle::Always).from_writer(Vec::new());
        writer.write_record(["a", "b", "c", "d", "e"]).unwrap();
        for row in &cells {
            writer.write_record(row).unwrap();
        }
        let read: Vec<Vec<String>> = rows(&writer.into_inner().unwrap()).into_iter().filter_map(|(_, cells)| cells.ok()).collect();
        proptest::prop_assert_eq!(read, cells);
    }

    #[test]
    fn no_bytes_panic_and_every_line_is_accounted_for(text in "[a,\"\n]{0,200}") {
        let text = format!("a,b,c,d\n{text}");
        rows(text.as_bytes());
    }
}
