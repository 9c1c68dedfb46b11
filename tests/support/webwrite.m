% What MATLAB documents of webwrite for a struct and the media type application/json, which Octave's own does not do:
% the struct is sent as JSON, and JSON that comes back is decoded.
function reply = webwrite (url, data, options)
  assert (strcmp (options.MediaType, 'application/json'))
  name = tempname ();
  file = fopen (name, 'w');
  fputs (file, jsonencode (data));
  fclose (file);
  headers = '';
  for k = 1:rows (options.HeaderFields)
    headers = [headers, sprintf(" -H '%s: %s'", options.HeaderFields{k, :})];
  end
  [status, text] = system (sprintf ("curl -s -H 'Content-Type: application/json'%s --data-binary @%s '%s'", headers, name, url));
  assert (status, 0)
  reply = jsondecode (text);
end
