//! The AsyncAPI 3 document of the topics, made from the contracts.
//!
//! Source: AsyncAPI specification 3.0.0; Kafka bindings 0.5.0. The Avro schemas stand in it as written.

use serde_json::{Map, Value, json};

use crate::context::Context;
use crate::contract::{CONTRACTS, Contract, ContractKind};

const AVRO_FORMAT: &str = "application/vnd.apache.avro;version=1.9.0";

/// Builds the document. `version` is the program's.
pub fn document(version: &str) -> Value {
    let mut channels = Map::new();
    let mut operations = Map::new();
    let mut messages = Map::new();
    for contract in CONTRACTS {
        messages.insert(message_id(contract), message(contract));
    }
    for context in Context::ALL {
        for (topic, action, summary) in [
            (context.events_topic(), "send", "What happened, in order per key"),
            (context.commands_topic(), "receive", "What services ask for; one effect per command id"),
            (context.outcomes_topic(), "send", "What became of each command of the command topic"),
        ] {
            let channel = topic.replace('.', "-");
            let carried: Vec<&Contract> =
                CONTRACTS.iter().filter(|contract| contract.topics().contains(&topic)).collect();
            let refs: Map<String, Value> = carried
                .iter()
                .map(|contract| {
                    let id = message_id(contract);
                    let reference = json!({ "$ref": format!("#/components/messages/{id}") });
                    (id, reference)
                })
                .collect();
            let operation_messages: Vec<Value> = carried
                .iter()
                .map(|contract| json!({ "$ref": format!("#/channels/{channel}/messages/{}", message_id(contract)) }))
                .collect();
            channels.insert(channel.clone(), json!({ "address": topic, "description": summary, "messages": refs }));
            operations.insert(
                format!("{action}-{channel}"),
                json!({
                    "action": action,
                    "channel": { "$ref": format!("#/channels/{channel}") },
                    "summary": summary,
                    "messages": operation_messages,
                }),
            );
        }
    }
    json!({
        "asyncapi": "3.0.0",
        "info": {
            "title": "Millrace topics",
            "version": version,
            "description": "CloudEvents in Kafka binary mode; values are Confluent-framed Avro (magic byte 0, schema id, body). The record key is the SKU; on platform topics, the projection.",
            "license": { "name": "Apache-2.0" },
        },
        "defaultContentType": "application/avro",
        "channels": channels,
        "operations": operations,
        "components": { "messages": messages, "schemas": { "cloudEventHeaders": headers() } },
    })
}

fn message_id(contract: &Contract) -> String {
    let short = contract.schema.name.rsplit('.').next().unwrap_or(contract.schema.name);
    format!("{short}-v{}", contract.schema.version)
}

fn message(contract: &Contract) -> Value {
    let avro: Value = serde_json::from_str(contract.avsc).unwrap_or(Value::Null);
    let summary = avro.get("doc").cloned().unwrap_or(Value::Null);
    let content_type = match contract.kind {
        ContractKind::Command => "application/avro, or application/json with the same fields",
        ContractKind::Event | ContractKind::Outcome => "application/avro",
    };
    json!({
        "name": contract.schema.name,
        "title": format!("{} version {}", contract.schema.name, contract.schema.version),
        "summary": summary,
        "description": format!("Content type: {content_type}."),
        "contentType": "application/avro",
        "headers": { "$ref": "#/components/schemas/cloudEventHeaders" },
        "payload": { "schemaFormat": AVRO_FORMAT, "schema": avro },
    })
}

/// JSON Schema of the record headers. A sender of commands gives the required ones.
fn headers() -> Value {
    let text = |description: &str| json!({ "type": "string", "description": description });
    json!({
        "type": "object",
        "required": ["ce_id", "ce_source", "ce_type", "ce_specversion"],
        "properties": {
            "ce_id": text("Event or command id (a UUID)"),
            "ce_source": text("Who sent it (a URI reference)"),
            "ce_type": text("Full Avro name of the body"),
            "ce_specversion": { "type": "string", "const": "1.0" },
            "ce_time": text("RFC 3339"),
            "ce_subject": text("Stream of the event, such as stock-A@w1"),
            "ce_partitionkey": text("The key: the SKU; on platform topics, the projection"),
            "ce_sequence": text("Gapless per topic and partition, 20 digits"),
            "ce_correlationid": text("Ties together what one cause set off"),
            "ce_causationid": text("Id of the command that caused the event"),
            "ce_streamversion": text("Version of the stream: 1, 2, 3 …"),
            "ce_position": text("Place in the event table: <xid>.<position>"),
            "traceparent": text("W3C trace context"),
            "content-type": text("application/avro, or application/json for a command"),
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reference_leads_somewhere() {
        fn walk(document: &Value, value: &Value) {
            match value {
                Value::Object(fields) => {
                    if let Some(Value::String(reference)) = fields.get("$ref") {
                        assert!(document.pointer(&reference[1..]).is_some(), "{reference}");
                    }
                    fields.values().for_each(|field| walk(document, field));
                }
                Value::Array(items) => items.iter().for_each(|item| walk(document, item)),
                _ => {}
            }
        }
        let document = document("0.0.0");
        walk(&document, &document);
        assert_eq!(document["channels"].as_object().unwrap().len(), 12);
    }
}
