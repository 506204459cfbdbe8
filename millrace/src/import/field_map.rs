//! Which column of a file is which field of a product.

use super::record::Column;

/// Columns that a message lists: a hostile file may have as many as it has bytes.
const MOST_LISTED: usize = 50;
/// Characters of a column's name in a message.
const LONGEST_LISTED: usize = 60;

/// A field of a product that a column can fill.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    Sku,
    Name,
    Brand,
    Category,
    Description,
    Price,
    Stock,
}

/// The columns of each field, found in the file.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct FieldMap {
    pub sku: Option<Column>,
    pub name: Option<Column>,
    pub brand: Option<Column>,
    /// From the widest category to the narrowest.
    pub category: Vec<Column>,
    pub description: Option<Column>,
    pub price: Option<Column>,
    pub stock: Option<Column>,
    /// What the SKU is derived from where a row has none.
    pub sku_from: Vec<Column>,
}

/// Why the map cannot be used. For whoever typed it.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MapError {
    #[error("--map: {given:?} is not FIELD=COLUMN")]
    NotAPair { given: String },
    #[error("--map: unknown field {given:?}; the fields are {}", Field::NAMES.join(", "))]
    UnknownField { given: String },
    #[error("--map: {field} is given twice")]
    Twice { field: &'static str },
    #[error("--map: {field}={column}: the file has no column {column:?}; it has {}", listed(.columns))]
    NoColumn { field: &'static str, column: String, columns: Vec<String> },
    #[error("--map: {field}={column}: the file has more than one column {column:?}")]
    ManyColumns { field: &'static str, column: String },
    #[error("--sku-from: {given:?} is neither a mapped field nor a column of the file; it has {}", listed(.columns))]
    SkuFrom { given: String, columns: Vec<String> },
    #[error("no column is {field}; give --map {field}=COLUMN{hint}. The file has {}", listed(.columns))]
    Needed { field: &'static str, hint: &'static str, columns: Vec<String> },
}

// === impl Field ===

impl Field {
    pub const ALL: [Field; 7] =
        [Field::Sku, Field::Name, Field::Brand, Field::Category, Field::Description, Field::Price, Field::Stock];
    const NAMES: [&str; 7] = ["sku", "name", "brand", "category", "description", "price", "stock"];

    pub fn name(self) -> &'static str {
        match self {
            Field::Sku => "sku",
            Field::Name => "name",
            Field::Brand => "brand",
            Field::Category => "category",
            Field::Description => "description",
            Field::Price => "price",
            Field::Stock => "stock",
        }
    }

    fn named(name: &str) -> Option<Self> {
        Field::ALL.into_iter().find(|field| field.name() == name)
    }
}

// === impl FieldMap ===

impl FieldMap {
    /// Finds the mapped columns among those of the file. Without a map, columns named like fields are taken.
    pub fn find(maps: &[String], sku_from: &[String], columns: &[String]) -> Result<Self, MapError> {
        let mut found = Self::default();
        if maps.is_empty() {
            for field in Field::ALL {
                if let Ok(column) = find_column(field, field.name(), columns) {
                    found.set(field, vec![column]);
                }
            }
        } else {
            let mut seen = Vec::new();
            for pair in maps.iter().flat_map(|map| map.split(',')).map(str::trim).filter(|pair| !pair.is_empty()) {
                let (field, column) =
                    pair.split_once('=').ok_or_else(|| MapError::NotAPair { given: pair.to_owned() })?;
                let field = Field::named(field.trim())
                    .ok_or_else(|| MapError::UnknownField { given: field.trim().to_owned() })?;
                if seen.contains(&field) {
                    return Err(MapError::Twice { field: field.name() });
                }
                seen.push(field);
                found.set(field, find_columns(field, column.trim(), columns)?);
            }
        }
        for part in sku_from.iter().map(|part| part.trim()).filter(|part| !part.is_empty()) {
            let mapped = Field::named(part).map(|field| found.columns_of(field)).unwrap_or_default();
            match find_column(Field::Sku, part, columns) {
                _ if !mapped.is_empty() => found.sku_from.extend(mapped),
                Ok(column) => found.sku_from.push(column),
                Err(_) => return Err(MapError::SkuFrom { given: part.to_owned(), columns: columns.to_vec() }),
            }
        }
        let needed = |field: Field, hint| MapError::Needed { field: field.name(), hint, columns: columns.to_vec() };
        if found.name.is_none() {
            return Err(needed(Field::Name, ""));
        }
        if found.sku.is_none() && found.sku_from.is_empty() {
            return Err(needed(Field::Sku, ", or --sku-from name where there are no SKUs"));
        }
        Ok(found)
    }

    fn set(&mut self, field: Field, mut columns: Vec<Column>) {
        match field {
            Field::Category => self.category = columns,
            Field::Sku => self.sku = columns.pop(),
            Field::Name => self.name = columns.pop(),
            Field::Brand => self.brand = columns.pop(),
            Field::Description => self.description = columns.pop(),
            Field::Price => self.price = columns.pop(),
            Field::Stock => self.stock = columns.pop(),
        }
    }

    fn columns_of(&self, field: Field) -> Vec<Column> {
        let one = |column: &Option<Column>| column.iter().cloned().collect();
        match field {
            Field::Category => self.category.clone(),
            Field::Sku => one(&self.sku),
            Field::Name => one(&self.name),
            Field::Brand => one(&self.brand),
            Field::Description => one(&self.description),
            Field::Price => one(&self.price),
            Field::Stock => one(&self.stock),
        }
    }
}

/// A category may be spread over columns; a column whose name has a slash is still found whole.
fn find_columns(field: Field, given: &str, columns: &[String]) -> Result<Vec<Column>, MapError> {
    let whole = find_column(field, given, columns);
    if field != Field::Category || whole.is_ok() || !given.contains('/') {
        return whole.map(|column| vec![column]);
    }
    given.split('/').map(|part| find_column(field, part.trim(), columns)).collect()
}

/// By exact name, else by the only one that differs in case.
fn find_column(field: Field, given: &str, columns: &[String]) -> Result<Column, MapError> {
    let column = |index: usize| Column { name: columns[index].clone(), index };
    let places = |is_it: &dyn Fn(&str) -> bool| -> Vec<usize> {
        columns.iter().enumerate().filter(|(_, name)| is_it(name)).map(|(index, _)| index).collect()
    };
    let lower = given.to_lowercase();
    let mut found = places(&|name| name == given);
    if found.is_empty() {
        found = places(&|name| name.to_lowercase() == lower);
    }
    match found[..] {
        [index] if !given.is_empty() => Ok(column(index)),
        [_, _, ..] => Err(MapError::ManyColumns { field: field.name(), column: given.to_owned() }),
        _ => Err(MapError::NoColumn { field: field.name(), column: given.to_owned(), columns: columns.to_vec() }),
    }
}

/// The columns in the words of the file, as many as anyone reads; one column with other separators in it tells of a
/// wrong delimiter.
fn listed(columns: &[String]) -> String {
    let named = columns.iter().take(MOST_LISTED).map(|column| match column.char_indices().nth(LONGEST_LISTED) {
        Some((end, _)) => format!("{:?}…", &column[..end]),
        None => format!("{column:?}"),
    });
    let mut list = named.collect::<Vec<_>>().join(", ");
    if let Some(more @ 1..) = columns.len().checked_sub(MOST_LISTED) {
        list.push_str(&format!(" and {more} more"));
    }
    let separator = match columns {
        [only] => [';', '\t', '|', ','].into_iter().find(|separator| only.contains(*separator)),
        _ => None,
    };
    match separator {
        Some(separator) => format!(
            "one column, {list}; is the delimiter another one, as in --delimiter '{}'?",
            separator.escape_default()
        ),
        None => list,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn columns(names: &[&str]) -> Vec<String> {
        names.iter().map(|name| (*name).to_owned()).collect()
    }

    fn find(map: &str, sku_from: &[&str], names: &[&str]) -> Result<FieldMap, MapError> {
        let maps = if map.is_empty() { Vec::new() } else { vec![map.to_owned()] };
        FieldMap::find(&maps, &columns(sku_from), &columns(names))
    }

    fn indexes(columns: &[Column]) -> Vec<usize> {
        columns.iter().map(|column| column.index).collect()
    }

    #[test]
    fn columns_named_like_fields_need_no_map() {
        let map = find("", &[], &["stock", "SKU", "Name", "colour"]).unwrap();
        assert_eq!(map.sku.unwrap().index, 1);
        assert_eq!(map.name.unwrap().index, 2);
        assert_eq!(map.stock.unwrap().index, 0);
        assert_eq!(map.price, None);
    }

    #[test]
    fn category_columns_are_joined_and_a_slash_in_a_name_is_no_join() {
        let names = ["id", "product", "category", "sub_category", "a/b"];
        let map = find("sku=id, name=product ,category=category/sub_category", &[], &names).unwrap();
        assert_eq!(indexes(&map.category), [2, 3]);
        let map = find("sku=id,name=product,category=a/b", &[], &names).unwrap();
        assert_eq!(indexes(&map.category), [4]);
    }

    #[test]
    fn a_sku_is_derived_from_fields_or_columns() {
        let map =
            find("name=product,category=c1/c2", &["name", "category", "weight"], &["product", "weight", "c1", "c2"])
                .unwrap();
        assert_eq!(indexes(&map.sku_from), [0, 2, 3, 1]);
        let error = find("name=product", &["gone"], &["product"]).unwrap_err();
        assert!(error.to_string().contains("gone") && error.to_string().contains("product"), "{error}");
    }

    #[test]
    fn a_wrong_map_is_told_what_the_file_has() {
        let error = find("name=titel", &["name"], &["title", "price"]).unwrap_err().to_string();
        assert!(error.contains("\"titel\"") && error.contains("\"title\", \"price\""), "{error}");
        let error = find("naem=title", &["name"], &["title"]).unwrap_err().to_string();
        assert!(error.contains("naem") && error.contains("sku, name, brand"), "{error}");
        assert!(matches!(find("name", &[], &["title"]), Err(MapError::NotAPair { .. })));
        assert!(matches!(find("name=a,name=b", &[], &["a", "b"]), Err(MapError::Twice { .. })));
        assert!(matches!(find("name=a", &["name"], &["a", "a"]), Err(MapError::ManyColumns { .. })));
        assert!(matches!(find("sku=a", &[], &["a"]), Err(MapError::Needed { field: "name", .. })));
        assert!(matches!(find("name=a", &[], &["a"]), Err(MapError::Needed { field: "sku", .. })));
        let error = find("name=a", &["name"], &["a;b;c"]).unwrap_err().to_string();
        assert!(error.contains("--delimiter ';'"), "{error}");
    }

    #[test]
    fn a_message_does_not_repeat_a_wide_header() {
        let mut names = vec!["é".repeat(100)];
        names.extend((1..MOST_LISTED + 7).map(|at| format!("c{at}")));
        let error = FieldMap::find(&[], &[], &names).unwrap_err().to_string();
        assert!(error.contains(&format!("{:?}…, \"c1\"", "é".repeat(LONGEST_LISTED))), "{error}");
        assert!(error.ends_with("\"c49\" and 7 more"), "{error}");
        let error = FieldMap::find(&[], &[], &names[..MOST_LISTED]).unwrap_err().to_string();
        assert!(error.ends_with("\"c49\""), "{error}");
    }
}
