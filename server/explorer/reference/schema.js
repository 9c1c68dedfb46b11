/** Schemas of the OpenAPI document in words, and an example that fits them. */

/** Follows a reference. */
export function resolve(spec, schema) {
  if (!schema?.$ref) return schema ?? {};
  return spec.components.schemas[schema.$ref.split("/").pop()];
}

/** The name of a schema's type, such as "number or list of number". */
export function typeWords(spec, schema) {
  if (schema.$ref) return schema.$ref.split("/").pop();
  if (schema.anyOf || schema.oneOf) {
    const parts = (schema.anyOf ?? schema.oneOf)
      .filter(({ type }) => type !== "null")
      .map((one) => typeWords(spec, one));
    return [...new Set(parts)].join(" or ");
  }
  if (schema.const !== undefined) return JSON.stringify(schema.const);
  if (schema.enum) return schema.enum.map((value) => JSON.stringify(value)).join(", ");
  if (schema.type === "array") return `list of ${schema.items ? typeWords(spec, schema.items) : "anything"}`;
  if (schema.format === "binary") return "bytes";
  return schema.type ?? "anything";
}

/**
 * The fields of an object.
 * @returns {{ name: string, type: string, needed: boolean, words: string, usual: unknown }[]}
 */
export function fieldsOf(spec, schema) {
  const { properties = {}, required = [] } = resolve(spec, schema);
  return Object.entries(properties).map(([name, property]) => ({
    name,
    type: typeWords(spec, property),
    needed: required.includes(name),
    words: property.description ?? resolve(spec, property).description ?? "",
    usual: property.default,
  }));
}

/** A value for a field that is needed. */
export function exampleOf(spec, schema) {
  const found = resolve(spec, schema);
  if (found.examples) return found.examples[0];
  if (found.default !== undefined && found.default !== null) return found.default;
  if (found.anyOf) return exampleOf(spec, found.anyOf[0]);
  if (found.enum) return found.enum[0];
  if (found.prefixItems) return found.prefixItems.map((one) => exampleOf(spec, one));
  if (found.type === "array") return [exampleOf(spec, found.items)];
  if (found.type === "object" || found.properties) {
    const needed = fieldsOf(spec, found).filter((field) => field.needed);
    return Object.fromEntries(needed.map(({ name }) => [name, exampleOf(spec, found.properties[name])]));
  }
  if (["integer", "number"].includes(found.type)) return Math.max(found.minimum ?? 0, 1);
  return "";
}
