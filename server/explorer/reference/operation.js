/** One route: what it takes, what it replies, and a form to try it. */

import { html, useSignal } from "../library.js";
import { fieldsOf, resolve, typeWords } from "./schema.js";
import { TryIt } from "./try_it.js";

/** All operations of the document. */
export function operationsOf(spec) {
  return Object.entries(spec.paths).flatMap(([path, methods]) =>
    Object.entries(methods)
      .filter(([method]) => ["get", "post", "put", "delete"].includes(method))
      .map(([method, operation]) => ({ ...operation, path, method: method.toUpperCase(), id: operation.operationId })),
  );
}

export function Operation({ operation, spec, sample }) {
  const { id, method, path, summary, description, parameters = [], requestBody, responses } = operation;
  const isOpen = useSignal(false);
  return html`<details class="operation" id=${id} onToggle=${({ target }) => (isOpen.value = target.open)}>
    <summary><span class="method ${method.toLowerCase()}">${method}</span> <code>${path}</code> <span class="summary">${summary}</span></summary>
    ${
      isOpen.value &&
      html`<div class="inside">
      ${description && html`<p>${description}</p>`}
      ${
        parameters.length > 0 &&
        html`<${Fields} title="Parameters" fields=${parameters.map((one) => ({
          name: one.name,
          type: typeWords(spec, one.schema),
          needed: one.required,
          words: `${one.in === "query" ? "" : `in the ${one.in}; `}${one.description ?? one.schema.description ?? ""}`,
          usual: one.schema.default,
        }))} />`
      }
      ${requestBody && html`<${Bodies} title="Request" content=${requestBody.content} spec=${spec} />`}
      <h4>Replies</h4>
      <dl class="replies">${Object.entries(responses).map(([status, reply]) => html`<dt>${status}</dt><dd>${reply.description}</dd>`)}</dl>
      <${Bodies} title="Reply" content=${responses[200]?.content} spec=${spec} />
      <${TryIt} operation=${operation} spec=${spec} sample=${sample} />
    </div>`
    }
  </details>`;
}

function Bodies({ title, content = {}, spec }) {
  return Object.entries(content).map(([mediaType, { schema }]) => {
    const types = schema?.anyOf ?? [schema ?? {}];
    return types.map(
      (type) => html`<${Fields}
      title="${title}: ${mediaType}${type.$ref ? `, ${typeWords(spec, type)}` : ""}"
      words=${resolve(spec, type).description}
      fields=${fieldsOf(spec, type)}
    />`,
    );
  });
}

function Fields({ title, words = "", fields }) {
  return html`<h4>${title}</h4>
    ${words && html`<p class="hint">${words}</p>`}
    ${
      fields.length > 0 &&
      html`<div class="scroll" tabindex="0" role="region" aria-label=${title}><table>
      <thead><tr><th scope="col">name</th><th scope="col">type</th><th scope="col">what</th></tr></thead>
      <tbody>${fields.map(
        (field) => html`<tr>
        <td><code>${field.name}</code>${field.needed ? html`<span class="needed">needed</span>` : ""}</td>
        <td>${field.type}</td>
        <td>${field.words}${field.usual !== undefined && field.usual !== null ? html` <span class="hint">usually ${JSON.stringify(field.usual)}</span>` : ""}</td>
      </tr>`,
      )}</tbody>
    </table></div>`
    }`;
}
