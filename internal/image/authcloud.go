package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"regexp"
	"strings"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	v4 "github.com/aws/aws-sdk-go-v2/aws/signer/v4"
	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"golang.org/x/oauth2"
	"golang.org/x/oauth2/jwt"

	"github.com/sandlot-dev/sandlot/internal/sandbox"
)

// ecrHost matches 123456789012.dkr.ecr.eu-central-1.amazonaws.com and its FIPS, dual-stack and China forms.
var ecrHost = regexp.MustCompile(`^[0-9]{12}\.dkr[.-]ecr(-fips)?\.([a-z0-9-]+)\.(amazonaws\.com|amazonaws\.com\.cn|on\.aws|on\.amazonwebservices\.com\.cn)$`)

var regionName = regexp.MustCompile(`^[a-z]{2,}(-[a-z0-9]+)+$`)

// awsSecret makes credentials that ask ECR for a token. One signed request is all that is wanted of AWS, so the signer of the SDK does,
// without its client for ECR.
func awsSecret(v map[string]string) (*credentials, error) {
	keys := aws.Credentials{AccessKeyID: v["AWS_ACCESS_KEY_ID"], SecretAccessKey: v["AWS_SECRET_ACCESS_KEY"], SessionToken: v["AWS_SESSION_TOKEN"]}
	region := v["AWS_REGION"]
	if region == "" {
		region = v["AWS_DEFAULT_REGION"]
	}
	if region != "" && !regionName.MatchString(region) {
		return nil, sandbox.Invalid(fieldSecret, "AWS_REGION is not the name of a region. Write it as in eu-central-1.")
	}
	at := v["AWS_ENDPOINT_URL_ECR"]
	if at != "" {
		if _, err := endpoint("AWS_ENDPOINT_URL_ECR", at); err != nil {
			return nil, err
		}
		if region == "" {
			return nil, sandbox.Invalid(fieldSecret, "AWS_ENDPOINT_URL_ECR needs AWS_REGION beside it.")
		}
	}
	bound := v["REGISTRY"] != ""
	return &credentials{resolve: func(repo name.Repository, rt http.RoundTripper) (authn.Authenticator, error) {
		call := ecrCall{keys: keys, region: region, endpoint: at, rt: rt}
		if m := ecrHost.FindStringSubmatch(repo.RegistryStr()); m != nil {
			call.region = m[2]
			if call.endpoint == "" {
				call.endpoint = "https://api.ecr" + m[1] + "." + m[2] + ".amazonaws.com"
				if strings.HasSuffix(m[3], ".cn") {
					call.endpoint += ".cn"
				}
			}
		} else if !bound || at == "" {
			return nil, denied("AWS keys open registries of ECR, as in 123456789012.dkr.ecr.eu-central-1.amazonaws.com, and the image is at %s.", repo.RegistryStr())
		}
		return &timed{fetch: call.token}, nil
	}}, nil
}

type ecrCall struct {
	keys             aws.Credentials
	region, endpoint string
	rt               http.RoundTripper
}

func (c ecrCall) token(ctx context.Context) (authn.AuthConfig, time.Time, error) {
	body := []byte("{}")
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, strings.TrimRight(c.endpoint, "/")+"/", bytes.NewReader(body))
	if err != nil {
		return authn.AuthConfig{}, time.Time{}, fmt.Errorf("asking ECR for a token: %w", err)
	}
	req.Header.Set("Content-Type", "application/x-amz-json-1.1")
	req.Header.Set("X-Amz-Target", "AmazonEC2ContainerRegistry_V20150921.GetAuthorizationToken")
	sum := sha256.Sum256(body)
	if err := v4.NewSigner().SignHTTP(ctx, c.keys, req, hex.EncodeToString(sum[:]), "ecr", c.region, time.Now()); err != nil {
		return authn.AuthConfig{}, time.Time{}, errors.New("the request to ECR can't be signed with these AWS keys")
	}
	resp, err := (&http.Client{Transport: c.rt}).Do(req)
	if err != nil {
		return authn.AuthConfig{}, time.Time{}, fmt.Errorf("asking ECR for a token: %w", err)
	}
	defer resp.Body.Close()
	data, err := io.ReadAll(io.LimitReader(resp.Body, 64<<10))
	if err != nil {
		return authn.AuthConfig{}, time.Time{}, fmt.Errorf("asking ECR for a token: %w", err)
	}
	if resp.StatusCode != http.StatusOK {
		return authn.AuthConfig{}, time.Time{}, ecrRefusal(resp.StatusCode, data)
	}
	return parseECR(data)
}

// ecrRefusal explains an answer of ECR. Its error names are a short list and safe to show.
func ecrRefusal(status int, data []byte) error {
	var answer struct {
		Type string `json:"__type"`
	}
	_ = json.Unmarshal(data, &answer) // not JSON: the status has to do
	kind := answer.Type[strings.LastIndex(answer.Type, "#")+1:]
	if status >= 500 || status == http.StatusTooManyRequests || strings.HasPrefix(kind, "Throttling") {
		return &statusError{status: status}
	}
	if kind == "" || len(kind) > 60 || !regexp.MustCompile(`^[A-Za-z]+$`).MatchString(kind) {
		kind = fmt.Sprintf("status %d", status)
	}
	return denied("AWS refuses these keys (%s). Check AWS_ACCESS_KEY_ID, AWS_SECRET_ACCESS_KEY and AWS_SESSION_TOKEN, and that they may call ecr:GetAuthorizationToken.", kind)
}

func parseECR(data []byte) (authn.AuthConfig, time.Time, error) {
	var answer struct {
		AuthorizationData []struct {
			AuthorizationToken string  `json:"authorizationToken"`
			ExpiresAt          float64 `json:"expiresAt"`
		} `json:"authorizationData"`
	}
	if err := json.Unmarshal(data, &answer); err == nil && len(answer.AuthorizationData) > 0 {
		raw, err := base64.StdEncoding.DecodeString(answer.AuthorizationData[0].AuthorizationToken)
		if user, password, ok := strings.Cut(string(raw), ":"); err == nil && ok {
			return authn.AuthConfig{Username: user, Password: password}, time.Unix(int64(answer.AuthorizationData[0].ExpiresAt), 0), nil
		}
	}
	return authn.AuthConfig{}, time.Time{}, &sandbox.Problem{Class: sandbox.ErrUnavailable, Code: "registry_failed", Field: fieldSecret,
		Detail: "ECR's answer holds no token. Try again later."}
}

// googleSecret makes credentials that exchange a service account's key for an access token.
func googleSecret(v map[string]string) (*credentials, error) {
	var key struct {
		Type         string `json:"type"`
		ClientEmail  string `json:"client_email"`
		PrivateKeyID string `json:"private_key_id"`
		PrivateKey   string `json:"private_key"`
		TokenURI     string `json:"token_uri"`
	}
	if err := json.Unmarshal([]byte(v["SERVICE_ACCOUNT_JSON"]), &key); err != nil { // the error quotes the text
		return nil, sandbox.Invalid(fieldSecret, "SERVICE_ACCOUNT_JSON is not JSON. Give the whole key file of a Google Cloud service account.")
	}
	if key.Type != "service_account" || key.ClientEmail == "" || key.PrivateKey == "" {
		return nil, sandbox.Invalid(fieldSecret, "SERVICE_ACCOUNT_JSON is not the key file of a Google Cloud service account: it needs type, client_email and private_key.")
	}
	if key.TokenURI == "" {
		key.TokenURI = "https://oauth2.googleapis.com/token"
	}
	if _, err := endpoint("The token_uri of SERVICE_ACCOUNT_JSON", key.TokenURI); err != nil {
		return nil, err
	}
	cfg := &jwt.Config{Email: key.ClientEmail, PrivateKeyID: key.PrivateKeyID, PrivateKey: []byte(key.PrivateKey), TokenURL: key.TokenURI,
		Scopes: []string{"https://www.googleapis.com/auth/cloud-platform"}}
	bound := v["REGISTRY"] != ""
	return &credentials{resolve: func(repo name.Repository, rt http.RoundTripper) (authn.Authenticator, error) {
		host := repo.RegistryStr()
		if !bound && host != "gcr.io" && !strings.HasSuffix(host, ".gcr.io") && !strings.HasSuffix(host, ".pkg.dev") {
			return nil, denied("A Google service account opens registries at pkg.dev and gcr.io, and the image is at %s. For another host name it in REGISTRY.", host)
		}
		return &timed{fetch: func(ctx context.Context) (authn.AuthConfig, time.Time, error) { return googleToken(ctx, cfg, rt) }}, nil
	}}, nil
}

func googleToken(ctx context.Context, cfg *jwt.Config, rt http.RoundTripper) (authn.AuthConfig, time.Time, error) {
	var lost error // of the network; the library tells of it in words only
	client := &http.Client{Transport: tripFunc(func(r *http.Request) (*http.Response, error) {
		resp, err := rt.RoundTrip(r)
		lost = err
		return resp, err
	})}
	token, err := cfg.TokenSource(context.WithValue(ctx, oauth2.HTTPClient, client)).Token()
	var refused *oauth2.RetrieveError
	switch {
	case errors.As(err, &refused): // it holds the whole answer, which stays here
		if s := refused.Response.StatusCode; s >= 500 || s == http.StatusTooManyRequests {
			return authn.AuthConfig{}, time.Time{}, &statusError{status: s}
		}
		return authn.AuthConfig{}, time.Time{}, denied("Google refuses this service account's key (status %d). Check that the key still exists and the account is enabled.", refused.Response.StatusCode)
	case lost != nil:
		return authn.AuthConfig{}, time.Time{}, fmt.Errorf("asking Google for a token: %w", lost)
	case err != nil || token.AccessToken == "":
		return authn.AuthConfig{}, time.Time{}, denied("No token can be had with this SERVICE_ACCOUNT_JSON: its private_key is unreadable, or the answer from token_uri was.")
	}
	expires := token.Expiry
	if expires.IsZero() {
		expires = time.Now().Add(5 * time.Minute)
	}
	return authn.AuthConfig{Username: "oauth2accesstoken", Password: token.AccessToken}, expires, nil
}

type tripFunc func(*http.Request) (*http.Response, error)

func (f tripFunc) RoundTrip(r *http.Request) (*http.Response, error) { return f(r) }
