// A gateway as teams write them with Gin: the chain that the original VoiceHelper gateway describes, by hand.
//
// /plain proxies; /chain adds CORS, request id, JWT and role; /whole adds the limit in Redis and, with -log, an access log.
package main

import (
	"crypto/rand"
	"encoding/hex"
	"flag"
	"fmt"
	"log"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/gin-gonic/gin"
	"github.com/golang-jwt/jwt"
	"github.com/gomodule/redigo/redis"
)

const (
	secret = "bench-secret-0123456789abcdef0123456789"
	limit  = 1000000000
)

type claims struct {
	Role string `json:"role"`
	jwt.StandardClaims
}

func proxy(target string) gin.HandlerFunc {
	address, err := url.Parse(target)
	if err != nil {
		log.Fatal(err)
	}
	reverse := httputil.NewSingleHostReverseProxy(address)
	reverse.FlushInterval = -1
	reverse.Transport = &http.Transport{
		MaxIdleConns:        4096,
		MaxIdleConnsPerHost: 2048,
		IdleConnTimeout:     5 * time.Minute,
		DisableCompression:  true,
	}
	return func(c *gin.Context) { reverse.ServeHTTP(c.Writer, c.Request) }
}

func refuse(c *gin.Context, status int, why string) {
	c.AbortWithStatusJSON(status, gin.H{"error": why})
}

func cors(c *gin.Context) {
	c.Header("Access-Control-Allow-Origin", "*")
	c.Header("Access-Control-Allow-Headers", "Content-Type, Authorization, X-Request-ID")
	c.Header("Access-Control-Allow-Methods", "GET, POST, PUT, PATCH, DELETE, OPTIONS")
	if c.Request.Method == http.MethodOptions {
		c.AbortWithStatus(http.StatusNoContent)
		return
	}
	c.Next()
}

func requestID(c *gin.Context) {
	id := c.GetHeader("X-Request-ID")
	if id == "" {
		var bytes [16]byte
		if _, err := rand.Read(bytes[:]); err != nil {
			refuse(c, http.StatusInternalServerError, "no randomness")
			return
		}
		id = hex.EncodeToString(bytes[:])
	}
	c.Request.Header.Set("X-Request-ID", id)
	c.Header("X-Request-ID", id)
	c.Next()
}

func limited(pool *redis.Pool) gin.HandlerFunc {
	return func(c *gin.Context) {
		key := "limit:" + c.ClientIP() + ":" + c.Request.URL.Path
		conn := pool.Get()
		count, err := redis.Int64(conn.Do("INCR", key))
		if err == nil && count == 1 {
			_, err = conn.Do("EXPIRE", key, 60)
		}
		conn.Close()
		if err != nil || count > limit {
			refuse(c, http.StatusTooManyRequests, "too many requests")
			return
		}
		c.Header("X-RateLimit-Remaining", strconv.FormatInt(limit-count, 10))
		c.Next()
	}
}

func auth(c *gin.Context) {
	header := c.GetHeader("Authorization")
	if !strings.HasPrefix(header, "Bearer ") {
		refuse(c, http.StatusUnauthorized, "no token")
		return
	}
	said := &claims{}
	token, err := jwt.ParseWithClaims(header[len("Bearer "):], said, func(token *jwt.Token) (interface{}, error) {
		if token.Method != jwt.SigningMethodHS256 {
			return nil, fmt.Errorf("algorithm %v", token.Header["alg"])
		}
		return []byte(secret), nil
	})
	if err != nil || !token.Valid {
		refuse(c, http.StatusUnauthorized, "invalid token")
		return
	}
	c.Set("role", said.Role)
	c.Next()
}

func role(allowed string) gin.HandlerFunc {
	return func(c *gin.Context) {
		if c.GetString("role") != allowed {
			refuse(c, http.StatusForbidden, "not allowed")
			return
		}
		c.Next()
	}
}

func main() {
	logs := flag.Bool("log", false, "an access log as JSON, into /dev/null")
	flag.Parse()
	gin.SetMode(gin.ReleaseMode)
	engine := gin.New()
	if *logs {
		out, err := os.OpenFile("/dev/null", os.O_WRONLY, 0)
		if err != nil {
			log.Fatal(err)
		}
		engine.Use(gin.LoggerWithConfig(gin.LoggerConfig{Output: out, Formatter: func(p gin.LogFormatterParams) string {
			return fmt.Sprintf("{\"time\":%q,\"status\":%d,\"took\":%d,\"ip\":%q,\"method\":%q,\"path\":%q}\n",
				p.TimeStamp.Format(time.RFC3339), p.StatusCode, p.Latency, p.ClientIP, p.Method, p.Path)
		}}))
	}
	engine.Use(gin.Recovery())
	engine.SetTrustedProxies(nil)
	pool := &redis.Pool{MaxIdle: 128, IdleTimeout: 5 * time.Minute, Dial: func() (redis.Conn, error) {
		return redis.Dial("tcp", "127.0.0.1:9379")
	}}
	app, streams := proxy("http://127.0.0.1:9100"), proxy("http://127.0.0.1:9101")
	engine.GET("/plain/*rest", app)
	engine.POST("/plain/*rest", app)
	engine.GET("/files/*rest", app)
	engine.GET("/sse", streams)
	engine.GET("/ws", streams)
	engine.Group("/chain", cors, requestID, auth, role("admin")).GET("/*rest", app)
	engine.Group("/whole", cors, requestID, limited(pool), auth, role("admin")).GET("/*rest", app)
	log.Fatal(http.ListenAndServe("127.0.0.1:8005", engine))
}
