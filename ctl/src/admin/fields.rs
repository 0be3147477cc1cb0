//! What `inspect` shows: names and values in order, as text or JSON.

use serde::{Serialize, Serializer, ser::SerializeMap};

/// Names and values, in order.
#[derive(Debug, Default)]
pub(super) struct Fields(Vec<(&'static str, Item)>);

/// A value.
#[derive(Debug, Serialize)]
#[serde(untagged)]
pub(super) enum Item {
    Text(String),
    Number(u64),
    Texts(Vec<String>),
    List(Vec<Fields>),
}

impl Fields {
    pub(super) fn text(&mut self, name: &'static str, value: impl ToString) -> &mut Self {
        self.0.push((name, Item::Text(value.to_string())));
        self
    }

    pub(super) fn number(&mut self, name: &'static str, value: u64) -> &mut Self {
        self.0.push((name, Item::Number(value)));
        self
    }

    pub(super) fn texts<T: ToString>(&mut self, name: &'static str, values: &[T]) -> &mut Self {
        self.0.push((name, Item::Texts(values.iter().map(ToString::to_string).collect())));
        self
    }

    pub(super) fn list(&mut self, name: &'static str, values: Vec<Self>) -> &mut Self {
        self.0.push((name, Item::List(values)));
        self
    }

    /// All of them, a line each, lists indented.
    pub(super) fn to_text(&self) -> String {
        let mut out = String::new();
        self.render(0, &mut out);
        out.truncate(out.trim_end().len());
        out
    }

    fn render(&self, indent: usize, out: &mut String) {
        let width = self.0.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
        for (name, item) in &self.0 {
            let name = name.replace('_', " ");
            let mut line = |value: &str| {
                let line = format!("{:indent$}{name:width$}  {value}", "");
                out.push_str(line.trim_end());
                out.push('\n');
            };
            match item {
                Item::Text(text) => line(text),
                Item::Number(number) => line(&number.to_string()),
                Item::Texts(texts) => line(&texts.join(", ")),
                Item::List(list) if list.is_empty() => line("none"),
                Item::List(list) => {
                    line("");
                    for fields in list {
                        fields.render(indent + 4, out);
                        out.push('\n');
                    }
                }
            }
        }
    }
}

impl Serialize for Fields {
    fn serialize<S: Serializer>(&self, to: S) -> Result<S::Ok, S::Error> {
        let mut map = to.serialize_map(Some(self.0.len()))?;
        for (name, item) in &self.0 {
            map.serialize_entry(name, item)?;
        }
        map.end()
    }
}
