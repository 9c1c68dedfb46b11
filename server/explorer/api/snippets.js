/** The page's question as code that works as it stands: curl, Python, MATLAB. */

/**
 * @typedef {object} Told
 * @property {string} url of the server
 * @property {string} mouse
 * @property {string | null} model only where several hold this mouse
 * @property {string} state
 * @property {Record<string, number>} behavior
 * @property {number[] | undefined} pupilCenter
 * @property {string | null} png the image in base64; null: it is not a picture, and lies in stimulus.npy
 * @property {boolean} needsKey
 */

const quote = (text) => `'${String(text).replaceAll("'", `'\\''`)}'`;

/** @param {Told} told */
export function asCurl(told) {
  const text = (value) => (typeof value === "string" ? value : JSON.stringify(value));
  const parts = Object.entries(fieldsOf(told)).map(([name, value]) => `-F ${quote(`${name}=${text(value)}`)}`);
  const key = told.needsKey ? ['-H "Authorization: Bearer $V1T_API_KEY"'] : [];
  const file = told.png ? "@-" : "@stimulus.npy";
  const command = ["curl -s", quote(`${told.url}predict`), ...key, ...parts, `-F ${quote(`image=${file}`)}`].join(" ");
  return told.png ? `printf %s ${told.png} | base64 -d | ${command}` : command;
}

/** @param {Told} told */
export function asPython(told) {
  const { mouse: _, ...more } = fieldsOf(told);
  const keywords = Object.entries(more).map(([name, value]) => `, ${name}=${JSON.stringify(value)}`).join("");
  const image = told.png ? `base64.b64decode("${told.png}")  # a PNG` : 'np.load("stimulus.npy")';
  const key = told.needsKey ? ', api_key=os.environ["V1T_API_KEY"]' : "";
  const imports = [
    told.png ? "import base64" : "",
    told.needsKey ? "import os" : "",
    told.png ? "" : "\nimport numpy as np",
  ];
  return `${imports.filter(Boolean).join("\n")}

from v1t_client import Client  # pip install v1t-client

image = ${image}
with Client(${JSON.stringify(told.url)}${key}) as client:
    prediction = client.predict(${JSON.stringify(told.mouse)}, image${keywords})
print(prediction)
print(prediction.responses)
`.replace(/^\n+/, "");
}

/** @param {Told} told */
export function asMatlab(told) {
  const text = (value) => (typeof value === "string" ? `'${value.replaceAll("'", "''")}'` : JSON.stringify(value));
  const { behavior = {}, ...others } = fieldsOf(told);
  const fields = { ...others, ...Object.fromEntries(Object.entries(behavior).map(([name, value]) => [`behavior.${name}`, value])) };
  const lines = Object.entries(fields).map(([name, value]) => `question.${name} = ${text(value)};`);
  const image = told.png
    ? `question.image = struct('base64', '${told.png}');  % a PNG`
    : `file = fopen('stimulus.npy'); bytes = fread(file, Inf, '*uint8')'; fclose(file);
question.image = struct('base64', matlab.net.base64encode(bytes));`;
  const key = told.needsKey ? ", ...\n    'HeaderFields', {'Authorization', ['Bearer ' getenv('V1T_API_KEY')]}" : "";
  return `question = struct();
${lines.join("\n")}
${image}
options = weboptions('MediaType', 'application/json', 'Timeout', 60${key});
reply = webwrite('${told.url}predict', question, options);
plot(reply.responses); xlabel('neuron'); ylabel('response / std');
`;
}

/** The request's fields, beside the image, that are not as the server has them by itself. */
function fieldsOf({ mouse, model, state, behavior, pupilCenter }) {
  return {
    mouse,
    ...(model && { model }),
    ...(state !== "median" && { state }),
    ...(Object.keys(behavior).length && { behavior }),
    ...(pupilCenter && { pupil_center: pupilCenter }),
  };
}
